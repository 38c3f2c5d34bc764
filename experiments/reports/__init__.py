"""Tables and pictures of binaries."""
