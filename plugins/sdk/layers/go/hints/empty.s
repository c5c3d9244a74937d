// Functions without a body, as imports are, take a file of assembly in their package.
