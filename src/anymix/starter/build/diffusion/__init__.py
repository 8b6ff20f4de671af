"""The recipe that trains the small pipelines this package ships, from nothing, on one core."""
