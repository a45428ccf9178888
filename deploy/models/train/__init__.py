"""Makes the two small models that the repository ships: `deploy/models/demo` and `deploy/models/demo-draft`."""
