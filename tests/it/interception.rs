//! Tests of interception.
