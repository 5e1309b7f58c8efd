"""Models: text, network and weights of a student and a teacher, from a name to a pair that is ready."""
