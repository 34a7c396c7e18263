//! A strict reader of pages: HTML that is also well-formed XML.

/// The text of a page without its style, one line for each tag. Panics if the page is not well-formed: for mismatched tags,
/// unquoted or repeated attributes, and `<` or `&` in text.
pub fn text(page: &str) -> String {
    let mut rest = page
        .strip_prefix("<!DOCTYPE html>")
        .expect("the page begins with its document type")
        .trim_start();
    let mut open: Vec<&str> = Vec::new();
    let mut text = String::new();
    while !rest.is_empty() {
        let (before, after) = rest.split_once('<').unwrap_or((rest, ""));
        assert!(
            !open.is_empty() || before.trim().is_empty(),
            "text outside any element: {before:?}"
        );
        if open.last() != Some(&"style") {
            text.push_str(&unescape(before));
            text.push('\n');
        }
        let Some((tag, behind)) = after.split_once('>') else {
            assert!(after.is_empty(), "a tag without an end: {after:?}");
            break;
        };
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "</{name}> ends another element");
        } else {
            let tag_text = tag.strip_suffix('/').unwrap_or(tag);
            let name = tag_text.split(' ').next().unwrap();
            check_attributes(&tag_text[name.len()..]);
            if tag_text == tag {
                open.push(name);
            }
        }
        rest = behind;
    }
    assert!(open.is_empty(), "elements without an end: {open:?}");
    text
}

fn check_attributes(mut rest: &str) {
    let mut names = Vec::new();
    while !rest.trim().is_empty() {
        let (name, after) = rest
            .trim_start()
            .split_once("=\"")
            .unwrap_or_else(|| panic!("no attribute: {rest:?}"));
        let (value, behind) = after.split_once('"').expect("the attribute ends");
        assert!(
            name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'),
            "not an attribute's name: {name:?}"
        );
        assert!(!names.contains(&name), "{name} twice");
        unescape(value);
        names.push(name);
        rest = behind;
    }
}

fn unescape(text: &str) -> String {
    let mut parts = text.split('&');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, behind) = part
            .split_once(';')
            .unwrap_or_else(|| panic!("a bare & in {text:?}"));
        plain.push(match name {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "#39" => '\'',
            _ => panic!("an unknown entity in {text:?}"),
        });
        plain.push_str(behind);
    }
    assert!(
        !plain.contains(|c: char| c.is_control() && c != '\n' && c != '\t'),
        "a control character in {text:?}"
    );
    plain
}

#[test]
fn reads_well_formed_pages_and_no_others() {
    let page = |body: &str| format!("<!DOCTYPE html>\n<html>{body}</html>\n");
    assert_eq!(
        text(&page("<style>a > b</style><p class=\"x\">a&lt;b<br/>c</p>"))
            .split_whitespace()
            .collect::<Vec<_>>(),
        ["a<b", "c"]
    );
    for bad in [
        "<p>",
        "</p>",
        "<b><i></b></i>",
        "<p class=x></p>",
        "<p id=\"a\" id=\"b\"></p>",
        "a & b",
        "&nbsp;",
        "<p title=\"&\"></p>",
        "<p>\u{1b}</p>",
        "<p",
    ] {
        assert!(std::panic::catch_unwind(|| text(&page(bad))).is_err(), "{bad}");
    }
}
