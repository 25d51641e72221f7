"""openpi's wire: msgpack with arrays over WebSocket."""
