"""The wire of simulator_inference_center: ZeroMQ and msgpack, for its clients."""
