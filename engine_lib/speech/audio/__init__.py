"""What samples go through between the codec and the client. Knows no engine and no server; one chain of stages a stream."""
