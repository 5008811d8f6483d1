//! Error types of programs that fail by themselves.

/// The class of Tako VM's error vocabulary that an exception belongs to, by the first of its classes
/// (most derived first) that the vocabulary names; `runtime_error` where it names none.
pub fn error_type<'a>(classes: impl IntoIterator<Item = &'a str>) -> &'static str {
    classes
        .into_iter()
        .find_map(named)
        .unwrap_or("runtime_error")
}

fn named(class: &str) -> Option<&'static str> {
    Some(match class {
        "MemoryError" => "oom",
        "PermissionError" => "permission",
        "SyntaxError" => "syntax_error",
        "ImportError" => "import_error",
        "JSONDecodeError" => "json_error",
        "UnicodeError" => "encoding_error",
        "TypeError" => "type_error",
        "ValueError" => "value_error",
        "KeyError" => "key_error",
        "IndexError" => "index_error",
        "AttributeError" => "attribute_error",
        "NameError" => "name_error",
        "FileNotFoundError" => "file_not_found",
        "IsADirectoryError" | "NotADirectoryError" => "file_error",
        "ConnectionError" => "network_error",
        "TimeoutError" => "network_timeout",
        "OSError" => "os_error",
        "RecursionError" => "recursion_error",
        "AssertionError" => "assertion_error",
        "ZeroDivisionError" => "division_error",
        "OverflowError" => "overflow_error",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_derived_class_that_has_a_name_decides() {
        let type_of = |classes: &str| error_type(classes.split(' '));
        assert_eq!(
            type_of("FileNotFoundError OSError Exception"),
            "file_not_found"
        );
        assert_eq!(
            type_of("ModuleNotFoundError ImportError Exception"),
            "import_error"
        );
        assert_eq!(
            type_of("JSONDecodeError ValueError Exception"),
            "json_error"
        );
        assert_eq!(
            type_of("UnicodeDecodeError UnicodeError ValueError"),
            "encoding_error"
        );
        assert_eq!(type_of("MyError KeyError LookupError"), "key_error");
        assert_eq!(type_of("gaierror OSError Exception"), "os_error");
        assert_eq!(type_of("StopIteration Exception"), "runtime_error");
        assert_eq!(type_of(""), "runtime_error");
    }
}
