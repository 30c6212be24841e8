"""What tests of several folders share: waiting, fakes, builders, and other people's implementations."""
