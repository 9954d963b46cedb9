"""The ``netsh ipsec`` language, static and dynamic, over the same policy model as the config file."""
