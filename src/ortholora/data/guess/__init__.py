"""A first look at files: what tasks they hold, and a configuration for them (`ortholora init`)."""
