"""Makes the folder of this file the root that tests import from."""
