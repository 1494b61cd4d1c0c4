//! What the verifier says of good and of broken files.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use pretty_assertions::assert_eq;
use wopr_models::{Set, tiny, verify};

const LLAMA: &str = "tiny-llama.gguf";
const QWEN: &str = "tiny-qwen2.gguf";
const WHISPER: &str = "tiny-whisper.bin";

fn good() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    tiny::write_all(dir.path()).unwrap();
    dir
}

/// What is said after `change` was done to a good file.
fn complaint(file: &str, change: impl Fn(Vec<u8>) -> Vec<u8>) -> String {
    let dir = good();
    let path = dir.path().join(file);
    std::fs::write(&path, change(std::fs::read(&path).unwrap())).unwrap();
    let report = verify(dir.path(), Set::Tiny).unwrap();
    let complaints = report.complaints();
    assert_eq!(complaints.len(), 1, "{complaints:?}");
    complaints[0].clone()
}

#[test]
fn what_the_generator_makes_is_well() {
    let report = verify(good().path(), Set::Tiny).unwrap();
    assert!(report.is_well(), "{report}");
    assert_eq!(
        report.to_string(),
        "tiny-llama.gguf: ok: llama, F32, 12 tensors, 839232 bytes\n\
         tiny-qwen2.gguf: ok: qwen2, F32, 14 tensors, 190048 bytes\n\
         tiny-whisper.bin: ok: whisper, mixed, 50 tensors, 3718766 bytes\n"
    );
}

#[test]
fn one_byte_too_few_is_truncated() {
    let cut = |mut bytes: Vec<u8>| {
        bytes.pop();
        bytes
    };
    assert_eq!(
        complaint(LLAMA, cut),
        "tiny-llama.gguf: truncated: it has 839231 bytes, and its tensors need 839232; download it again"
    );
    assert_eq!(
        complaint(WHISPER, cut),
        "tiny-whisper.bin: truncated: ends at byte 3718765, in the middle of \
         decoder.blocks.0.cross_attn.out.bias; download it again"
    );
}

#[test]
fn a_file_cut_in_its_header_is_truncated() {
    let said = complaint(LLAMA, |bytes| bytes[..100].to_vec());
    assert_eq!(
        said,
        "tiny-llama.gguf: truncated: ends at byte 100, in the middle of the metadata; download it again"
    );
}

#[test]
fn an_empty_file_and_a_web_page_are_no_models() {
    assert_eq!(
        complaint(QWEN, |_| Vec::new()),
        r#"tiny-qwen2.gguf: not a model: starts with "fewer than four bytes", not with "GGUF"; download it again"#
    );
    assert_eq!(
        complaint(QWEN, |_| b"<!DOCTYPE html>".to_vec()),
        r#"tiny-qwen2.gguf: not a model: starts with "<!DO", not with "GGUF"; download it again"#
    );
}

#[test]
fn another_model_under_the_name_is_the_wrong_kind() {
    let dir = good();
    std::fs::copy(dir.path().join(LLAMA), dir.path().join(QWEN)).unwrap();
    assert_eq!(
        verify(dir.path(), Set::Tiny).unwrap().complaints(),
        ["tiny-qwen2.gguf: the wrong model: expected qwen2 in F32, found llama in F32; was it renamed?"]
    );
}

#[test]
fn a_corrupt_count_asks_for_no_memory() {
    let said = complaint(LLAMA, |mut bytes| {
        bytes[8..16].fill(0xff);
        bytes
    });
    assert_eq!(
        said,
        "tiny-llama.gguf: truncated: ends at byte 839232, in the middle of the metadata; download it again"
    );
}

#[test]
fn an_unknown_version_is_unreadable() {
    let said = complaint(LLAMA, |mut bytes| {
        bytes[4] = 9;
        bytes
    });
    assert_eq!(
        said,
        "tiny-llama.gguf: unreadable: the version is 9: only 2 and 3 are known, in little-endian order"
    );
}

#[test]
fn missing_files_are_named_and_fetched_ones_are_not_missed() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(
        verify(dir.path(), Set::Production).unwrap().complaints(),
        [
            "Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf: missing: download it into this directory, or take `models tiny`",
            "qwen2-0_5b-instruct-q8_0.gguf: missing: download it into this directory, or take `models tiny`",
        ]
    );
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let error = verify(Path::new("/nowhere"), Set::Tiny).unwrap_err().to_string();
    assert_eq!(
        error,
        "/nowhere is not a directory; give the one that holds the model files"
    );
}
