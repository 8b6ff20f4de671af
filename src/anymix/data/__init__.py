"""Files to samples: conversations and pictures, read lazily, checked before training, converted.

Knows no model. What depends on one (tokens, tiles) is asked of a codec that is handed in.
"""
