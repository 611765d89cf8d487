"""What happened, in numbers and in lines: the shared page, histograms, access records, the event journal. Pure."""
