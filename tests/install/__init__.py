"""Installing the distribution as its users do: `make base-install`."""
