"""How frames leave the engine: cut into chunks, handed to listeners."""
