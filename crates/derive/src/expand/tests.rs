use super::plain;

/// What the derive says about a declaration that it refuses.
fn refused(declaration: &str) -> String {
    let input = syn::parse_str(declaration).expect("the declaration is Rust");
    match plain(&input) {
        Ok(_) => format!("accepted: {declaration}"),
        Err(errors) => errors.into_iter().map(|error| error.to_string()).collect::<Vec<_>>().join("; "),
    }
}

#[test]
fn a_declaration_that_cannot_be_shared_is_refused_with_the_reason() {
    let cases = [
        (
            "struct A { x: u8 }",
            "`A` needs `#[repr(C)]`: without it another build of the program may order its fields differently",
        ),
        (
            "#[repr(packed)] struct A { x: u8 }",
            "`A` needs `#[repr(C)]`: without it another build of the program may order its fields differently",
        ),
        (
            "#[repr(C)] struct A<T> { x: T }",
            "`A` is generic: `Plain` can only be derived for one definite layout, so write a type without parameters",
        ),
        (
            "#[repr(C)] struct A<const N: usize> { x: [u8; N] }",
            "`A` is generic: `Plain` can only be derived for one definite layout, so write a type without parameters",
        ),
        (
            "#[repr(C)] struct A<'a> { x: &'a u8 }",
            "`A` is generic: `Plain` can only be derived for one definite layout, so write a type without parameters",
        ),
        (
            "#[repr(C)] union A { x: u8 }",
            "`A` is a union: what its bytes mean is known to nobody who reads them, use a struct or an enum",
        ),
        (
            "enum A { X }",
            "`A` needs `#[repr(u8)]` or another integer of fixed size: without it the compiler chooses",
        ),
        (
            "#[repr(C)] enum A { X }",
            "`A` needs `#[repr(u8)]` or another integer of fixed size: without it the compiler chooses",
        ),
        (
            "#[repr(usize)] enum A { X }",
            "`A` needs an integer of fixed size, as in `#[repr(u8)]`: one of u8, u16, u32, u64, i8, i16, i32, i64",
        ),
        (
            "#[repr(u8)] enum A { X(u8) }",
            "variant `X` has fields: `Plain` enums are plain numbers, so keep what belongs to it in a struct beside it",
        ),
        ("#[repr(u8)] enum A {}", "`A` has no variants, so it has no values to share"),
        (
            "#[repr(C)] #[plain(unchecked)] struct A { x: u8 }",
            "`#[plain(..)]` knows `checked` and `crate = path`",
        ),
    ];
    for (declaration, reason) in cases {
        assert_eq!(refused(declaration), reason);
    }
}

#[test]
fn all_that_is_wrong_with_an_enum_is_said_at_once() {
    let reasons = refused("enum A { X(u8), Y { z: u8 }, Z }");
    assert!(
        reasons.contains("`X`") && reasons.contains("`Y`") && reasons.contains("`#[repr(u8)]`"),
        "{reasons}"
    );
}

#[test]
fn generated_code_refers_to_the_crate_that_the_user_depends_on() {
    let expand =
        |declaration| plain(&syn::parse_str(declaration).expect("Rust")).expect("accepted").to_string();
    assert!(
        expand("#[repr(C)] struct A { x: u8 }")
            .contains(":: crossproc :: __private :: bytemuck :: Pod for A")
    );
    let elsewhere = expand("#[repr(C)] #[plain(crate = crate::inner)] struct A { x: u8 }");
    assert!(
        elsewhere.contains("crate :: inner :: __private :: Plain for A")
            && !elsewhere.contains(":: crossproc")
    );
}
