"""LeRobot's wire: gRPC AsyncInference, whose messages hold pickles. Needs grpcio, no protobuf and no torch."""
