"""Admission: who is next of those that wait, how many may wait, when the others should ask again."""
