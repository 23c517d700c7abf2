"""Where a reconstruction meets the truth: matching, scores, intervals, records, privacy."""
