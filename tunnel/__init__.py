"""Moving packets, and the program."""
