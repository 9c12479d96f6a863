//! How deep a YAML text is nested, by the parser that is going to read it.
//!
//! `serde_yaml` looks at the depth when it has read the whole text, for which its parser takes time with the square of the
//! depth. So that parser, libyaml, is asked first: one event after the other, and no further than the depth that is allowed.
//! It looks ahead by 1024 characters at most, so it takes time with the length alone. Whatever looks at quotes and brackets
//! by itself sees some of them otherwise than the parser does.

use std::mem::MaybeUninit;

/// Whether the text is nested deeper than `most`, as far as it is YAML.
pub(super) fn is_deeper_than(most: usize, text: &[u8]) -> bool {
    // In a box, for it points to itself.
    let mut parser = Box::new(MaybeUninit::<unsafe_libyaml::yaml_parser_t>::uninit());
    let parser = parser.as_mut_ptr();
    // SAFETY: the memory is there for all of this function.
    if unsafe { unsafe_libyaml::yaml_parser_initialize(parser) }.fail {
        return false;
    }
    // SAFETY: it is initialised, without an input so far, and `text` outlives it.
    unsafe {
        unsafe_libyaml::yaml_parser_set_encoding(parser, unsafe_libyaml::YAML_UTF8_ENCODING);
        unsafe_libyaml::yaml_parser_set_input_string(parser, text.as_ptr(), text.len() as u64);
    }
    let mut depth = 0usize;
    // An error is told by whoever reads the text: it meets the same one there.
    // SAFETY: it is initialised, and has an input.
    while let Some(kind) = unsafe { next(parser) } {
        match kind {
            unsafe_libyaml::YAML_SEQUENCE_START_EVENT | unsafe_libyaml::YAML_MAPPING_START_EVENT => depth += 1,
            unsafe_libyaml::YAML_SEQUENCE_END_EVENT | unsafe_libyaml::YAML_MAPPING_END_EVENT => {
                depth = depth.saturating_sub(1)
            }
            _ => {}
        }
        if depth > most {
            break;
        }
    }
    // SAFETY: it is initialised, and is not used any more.
    unsafe { unsafe_libyaml::yaml_parser_delete(parser) };
    depth > most
}

/// The next event's kind; `None` at the end, or at an error.
///
/// # Safety
/// The parser is initialised and has an input.
unsafe fn next(parser: *mut unsafe_libyaml::yaml_parser_t) -> Option<unsafe_libyaml::yaml_event_type_t> {
    let mut event = MaybeUninit::<unsafe_libyaml::yaml_event_t>::uninit();
    // SAFETY: as for this function; the event is filled if that went well, and its memory given back then.
    unsafe {
        if unsafe_libyaml::yaml_parser_parse(parser, event.as_mut_ptr()).fail {
            return None;
        }
        let kind = (*event.as_ptr()).type_;
        unsafe_libyaml::yaml_event_delete(event.as_mut_ptr());
        (kind != unsafe_libyaml::YAML_STREAM_END_EVENT).then_some(kind)
    }
}
