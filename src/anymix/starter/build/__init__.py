"""The recipe that trains the small models this package ships, from nothing, on one core."""
