"""What is spoken and how it sounds: texts into lines, samples into what a client asked for.

Knows no engine and no server.
"""
