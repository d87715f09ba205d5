"""The talker: prompt rows in, chunks of codec frames out, many streams in one continuous batch."""
