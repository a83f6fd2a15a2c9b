"""What the gRPC runtime carries over loopback, beside a raw copy of the same bytes and beside Flower."""
