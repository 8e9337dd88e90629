"""Device code. Host code and autograd stand in the files of the same name one level up."""
