"""vla-eval's WebSocket wire: one action for each observation, the chunk kept on this side."""
