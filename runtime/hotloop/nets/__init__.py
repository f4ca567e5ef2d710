"""The networks in plain torch, written once: run natively, trained, and exported. Only this package needs torch."""
