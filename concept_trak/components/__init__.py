"""Which parameters hold a concept: measurements, tables, edits, dose curves, calibration."""
