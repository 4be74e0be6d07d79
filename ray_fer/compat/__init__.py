"""The private names of other packages that we use: one module for each package, with the version that was checked."""
