"""LeRobot's wire: gRPC AsyncInference, whose messages hold pickles. Needs grpcio, not protobuf or torch."""
