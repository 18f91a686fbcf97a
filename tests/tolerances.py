"""Every tolerance of the tests, named once. They are never loosened without a measurement beside them."""

EXACT64 = 1e-9  # relative, two float64 implementations of one formula
BATCH32 = 2e-5  # relative, float32 features of one sample in two batches (matrix products block differently)
STORED16 = 1e-3  # relative, features stored as float16 with a scale against float64
