"""Machine images: how they are built, and the contract each of them states."""
