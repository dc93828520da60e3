"""Other people's readers of kernel dumps, asked whether a dump is what Windows would have left."""
