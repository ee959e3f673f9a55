"""Images of many seeds, made once each, whatever interrupts the work: `fewstep generate`."""
