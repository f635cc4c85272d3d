"""The recipe: strict YAML, its schema, and the components it names."""
