//! The table of problems, and codes that aren't on it.

use std::string::ToString as _;

use zerocopy::IntoBytes as _;

use crate::status::{Problem, Status, TABLE};

#[test]
fn every_problem_survives_the_boundary() {
    for &(problem, text) in TABLE {
        let status = Status::at(problem, 7);
        assert_eq!(status.check(), Err(problem));
        assert_eq!(status.offset(), Some(7));
        assert_eq!(problem.text(), text);
        assert!(status.to_string().starts_with(text));
    }
}

#[test]
fn numbers_and_texts_are_unique() {
    for (index, (problem, text)) in TABLE.iter().enumerate() {
        for (other, other_text) in &TABLE[..index] {
            assert_ne!(*problem as u32, *other as u32);
            assert_ne!(text, other_text);
        }
        assert_eq!(problem.is_limit(), text.starts_with("limit: "));
    }
}

#[test]
fn unknown_codes_are_no_success() {
    for code in [9u32, 1000, u32::MAX] {
        let status: Status = zerocopy::transmute!([code, 0]);
        assert_eq!(status.check(), Err(Problem::Unlisted));
    }
    let with_a_place: Status = zerocopy::transmute!([0u32, 5u32]);
    assert!(with_a_place.check().is_err());
    assert_eq!(Status::OK.as_bytes(), [0; 8]);
    assert_eq!(Status::at(Problem::BadTag, u32::MAX).offset(), Some(u32::MAX - 1));
}
