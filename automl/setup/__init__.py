"""What a worker is told: model, data, machine, packing, precision, hosts."""
