"""`check`: all that can be known of a configuration without training it. It writes nothing."""
