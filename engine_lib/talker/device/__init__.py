"""The device side of the talker: plans in, frames out. Knows no request."""
