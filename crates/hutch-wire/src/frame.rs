//! One frame of the multiplexed byte stream, as bytes.
