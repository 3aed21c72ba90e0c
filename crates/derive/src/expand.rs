//! From the declaration of a type to the impls that make it `Plain`, and to the checks that make these impls right.
//!
//! The generated `unsafe impl`s promise what bytemuck asks: a fixed layout, no byte without a field, fields that keep the same
//! promises. Each promise is either seen in the declaration here (`repr`, no generics) or checked by the compiler in code
//! generated beside the impl (the types of the fields, padding), so none is left to the user.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::ext::IdentExt as _;
use syn::spanned::Spanned as _;
use syn::{
    Attribute, Data, DataEnum, DataStruct, DeriveInput, Error, Fields, Ident, Index, Path, Result, Type,
};

/// The impl of `Plain` for the type, with all that it needs.
pub(crate) fn plain(input: &DeriveInput) -> Result<TokenStream> {
    let name = &input.ident;
    if !input.generics.params.is_empty() {
        return Err(Error::new_spanned(
            &input.generics,
            format!(
                "`{name}` is generic: `Plain` can only be derived for one definite layout, so write a type without parameters"
            ),
        ));
    }
    let options = Options::read(&input.attrs)?;
    let repr = Repr::read(&input.attrs)?;
    match &input.data {
        Data::Struct(data) => structure(name, data, &options, &repr),
        Data::Enum(data) => enumeration(name, data, &options, &repr),
        Data::Union(data) => Err(Error::new(
            data.union_token.span,
            format!(
                "`{name}` is a union: what its bytes mean is known to nobody who reads them, use a struct or an enum"
            ),
        )),
    }
}

/// What stands in `#[plain(..)]`.
struct Options {
    /// The module with everything that generated code refers to.
    private: TokenStream,
    checked: bool,
}

impl Options {
    fn read(attributes: &[Attribute]) -> Result<Self> {
        let mut root: Option<Path> = None;
        let mut checked = false;
        for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("plain")) {
            attribute.parse_nested_meta(|option| {
                if option.path.is_ident("checked") {
                    checked = true;
                    Ok(())
                } else if option.path.is_ident("crate") {
                    root = Some(option.value()?.parse()?);
                    Ok(())
                } else {
                    Err(option.error("`#[plain(..)]` knows `checked` and `crate = path`"))
                }
            })?;
        }
        let root = root.map_or_else(|| quote!(::crossproc), ToTokens::into_token_stream);
        Ok(Self { private: quote!(#root::__private), checked })
    }
}

/// What stands in `#[repr(..)]`.
#[derive(Default)]
struct Repr {
    /// The attributes as they are, for a twin of the same layout.
    attributes: Vec<Attribute>,
    /// `C` or `transparent`.
    fixed: bool,
    packed: bool,
    integer: Option<Ident>,
}

impl Repr {
    fn read(attributes: &[Attribute]) -> Result<Self> {
        let mut repr = Self::default();
        for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("repr")) {
            repr.attributes.push(attribute.clone());
            attribute.parse_nested_meta(|hint| {
                if hint.path.is_ident("C") || hint.path.is_ident("transparent") {
                    repr.fixed = true;
                } else if hint.path.is_ident("packed") {
                    repr.packed = true;
                } else if !hint.path.is_ident("align") {
                    // What is none of the compiler's words is refused by the compiler.
                    repr.integer = hint.path.get_ident().cloned();
                }
                if hint.input.peek(syn::token::Paren) {
                    let number;
                    syn::parenthesized!(number in hint.input);
                    number.parse::<TokenStream>()?;
                }
                Ok(())
            })?;
        }
        Ok(repr)
    }
}

/// A field, as generated code refers to it.
struct Field<'a> {
    /// `name`, or `0` in a tuple struct.
    member: TokenStream,
    /// The name in descriptions.
    name: String,
    ty: &'a Type,
}

impl<'a> Field<'a> {
    fn all(fields: &'a Fields) -> Vec<Self> {
        let field = |(position, field): (usize, &'a syn::Field)| match &field.ident {
            Some(name) => Self {
                member: name.to_token_stream(),
                name: name.unraw().to_string(),
                ty: unwrapped(&field.ty),
            },
            None => Self {
                member: Index { index: position as u32, span: field.ty.span() }.to_token_stream(),
                name: position.to_string(),
                ty: unwrapped(&field.ty),
            },
        };
        fields.iter().enumerate().map(field).collect()
    }
}

/// The type without the invisible or visible parentheses around it that a macro may have left.
fn unwrapped(mut ty: &Type) -> &Type {
    loop {
        ty = match ty {
            Type::Group(group) => &group.elem,
            Type::Paren(paren) => &paren.elem,
            _ => return ty,
        }
    }
}

fn structure(name: &Ident, data: &DataStruct, options: &Options, repr: &Repr) -> Result<TokenStream> {
    if !repr.fixed {
        return Err(Error::new_spanned(
            name,
            format!(
                "`{name}` needs `#[repr(C)]`: without it another build of the program may order its fields differently"
            ),
        ));
    }
    let private = &options.private;
    let fields = Field::all(&data.fields);
    let description = name.unraw().to_string();

    let described = fields.iter().map(|Field { member, name: field, ty }| {
        let layout = layout(ty, private);
        quote!(#private::Field::new(#field, ::core::mem::offset_of!(#name, #member), #layout))
    });
    let impls = if options.checked {
        checked_impls(name, data, &fields, private, repr)
    } else {
        let any_bits = any_bits(fields.iter().map(|field| element(field.ty)), private);
        quote! {
            #any_bits
            #[automatically_derived]
            unsafe impl #private::bytemuck::Zeroable for #name {}
            #[automatically_derived]
            unsafe impl #private::bytemuck::Pod for #name {}
        }
    };
    let no_padding = no_padding(name, &fields);
    Ok(quote! {
        // That every field is `Plain`, which both kinds of impls rest on, is checked where its layout is asked for.
        #[automatically_derived]
        impl #private::Plain for #name {
            const LAYOUT: &'static #private::Layout = {
                const __FIELDS: &[#private::Field] = &[#(#described),*];
                &#private::Layout::structure::<#name>(#description, __FIELDS)
            };
        }
        const _: () = {
            #impls
            #no_padding
        };
    })
}

/// An expression of type `&'static Layout`. An array is taken apart, because an array of checked elements is not itself `Plain`.
fn layout(ty: &Type, private: &TokenStream) -> TokenStream {
    if let Type::Array(array) = ty {
        let element = layout(unwrapped(&array.elem), private);
        let count = &array.len;
        return quote!(const { &#private::Layout::array(#element, #count) });
    }
    quote!(<#ty as #private::Plain>::LAYOUT)
}

/// What an array consists of in the end, or the type itself.
fn element(mut ty: &Type) -> &Type {
    while let Type::Array(array) = ty {
        ty = unwrapped(&array.elem);
    }
    ty
}

/// A check that each of the types accepts every bit pattern; an array does if its elements do.
fn any_bits(types: impl Iterator<Item = impl ToTokens>, private: &TokenStream) -> TokenStream {
    quote! {
        const fn __any_bits<__T: #private::AnyBits>() {}
        #(__any_bits::<#types>();)*
    }
}

/// A check that the fields lie side by side and fill the struct, so that no byte is without a field.
fn no_padding(name: &Ident, fields: &[Field]) -> TokenStream {
    let mut checks = TokenStream::new();
    let mut last: Option<&Field> = None;
    for field in fields {
        let Field { member, name: field_name, ty } = field;
        if let Some(Field { name: previous, .. }) = last {
            let message = format!(
                "`{name}` has padding between its fields `{previous}` and `{field_name}`, bytes that would be published uninitialized: \
                 order the fields from large to small, or put a field of bytes there (`_pad: [u8; 4]`)"
            );
            let span = generated_at(member.span());
            checks.extend(quote_spanned! {span=>
                ::core::assert!(::core::mem::offset_of!(#name, #member) == __end, #message);
            });
        }
        // The field has the type that was seen here, also if an attribute macro below the derive rewrote the struct.
        checks.extend(quote! {
            let _: fn(#name) -> #ty = |__value| __value.#member;
            let __end = __end + ::core::mem::size_of::<#ty>();
        });
        last = Some(field);
    }
    let after = last.map_or_else(|| "it".to_owned(), |field| format!("its last field `{}`", field.name));
    let message = format!(
        "`{name}` has padding after {after}, bytes that would be published uninitialized: \
         order the fields from large to small, or put a field of bytes there (`_pad: [u8; 4]`)"
    );
    let span = generated_at(name.span());
    checks.extend(quote_spanned! {span=>
        ::core::assert!(::core::mem::size_of::<#name>() == __end, #message);
    });
    quote! {
        let __end = 0_usize;
        #checks
    }
}

/// Generated code that errors show at `place`.
fn generated_at(place: Span) -> Span {
    Span::call_site().located_at(place)
}

/// A twin of the struct whose fields hold the bits of the struct's fields, and the check that these are values.
fn checked_impls(
    name: &Ident,
    data: &DataStruct,
    fields: &[Field],
    private: &TokenStream,
    repr: &Repr,
) -> TokenStream {
    let twin = format_ident!("__CrossprocBits");
    let attributes = &repr.attributes;
    let bits: Vec<_> = fields.iter().map(|field| bits_of(field.ty, private)).collect();
    let members = fields.iter().map(|field| &field.member);
    let declaration = match data.fields {
        Fields::Named(_) => quote!(pub struct #twin { #(#members: #bits),* }),
        Fields::Unnamed(_) => quote!(pub struct #twin(#(#bits),*);),
        Fields::Unit => quote!(pub struct #twin;),
    };
    let valid = fields.iter().map(|Field { member, ty, .. }| {
        // A reference into a packed struct may be misaligned: its fields are copied out.
        let bits = if repr.packed { quote!(&{ __bits.#member }) } else { quote!(&__bits.#member) };
        is_valid(ty, &bits, private)
    });
    let any_bits = any_bits(bits.iter(), private);
    quote! {
        #[doc(hidden)]
        #[automatically_derived]
        #[derive(::core::clone::Clone, ::core::marker::Copy)]
        #(#attributes)*
        #declaration

        #any_bits
        #[automatically_derived]
        unsafe impl #private::bytemuck::Zeroable for #twin {}
        #[automatically_derived]
        unsafe impl #private::bytemuck::Pod for #twin {}
        #[automatically_derived]
        unsafe impl #private::bytemuck::NoUninit for #name {}
        #[automatically_derived]
        unsafe impl #private::bytemuck::CheckedBitPattern for #name {
            type Bits = #twin;
            #[inline]
            fn is_valid_bit_pattern(__bits: &#twin) -> ::core::primitive::bool {
                true #(&& #valid)*
            }
        }
        ::core::assert!(
            ::core::mem::size_of::<#name>() == ::core::mem::size_of::<#twin>()
                && ::core::mem::align_of::<#name>() == ::core::mem::align_of::<#twin>(),
            "a field and its bits differ in size or alignment"
        );
    }
}

/// The type that holds the bits of a `ty` before they are checked.
fn bits_of(ty: &Type, private: &TokenStream) -> TokenStream {
    if let Type::Array(array) = ty {
        let element = bits_of(unwrapped(&array.elem), private);
        let count = &array.len;
        return quote!([#element; #count]);
    }
    let span = generated_at(ty.span());
    quote_spanned!(span=> <#ty as #private::PlainBits>::Bits)
}

/// Whether `bits`, an expression of the type `&bits_of(ty)`, is a value.
fn is_valid(ty: &Type, bits: &TokenStream, private: &TokenStream) -> TokenStream {
    if let Type::Array(array) = ty {
        let valid = is_valid(unwrapped(&array.elem), &quote!(__element), private);
        return quote!(::core::iter::Iterator::all(&mut <[_]>::iter(#bits), |__element| #valid));
    }
    quote!(<#ty as #private::bytemuck::CheckedBitPattern>::is_valid_bit_pattern(#bits))
}

/// Integers whose size is the same on every machine and that an enum may have.
const INTEGERS: [&str; 8] = ["u8", "u16", "u32", "u64", "i8", "i16", "i32", "i64"];

fn enumeration(name: &Ident, data: &DataEnum, options: &Options, repr: &Repr) -> Result<TokenStream> {
    let mut errors: Option<Error> = None;
    let mut wrong = |error: Error| match &mut errors {
        Some(errors) => errors.combine(error),
        None => errors = Some(error),
    };
    for variant in data.variants.iter().filter(|variant| !matches!(variant.fields, Fields::Unit)) {
        wrong(Error::new_spanned(
            &variant.fields,
            format!(
                "variant `{}` has fields: `Plain` enums are plain numbers, so keep what belongs to it in a struct beside it",
                variant.ident
            ),
        ));
    }
    if data.variants.is_empty() {
        wrong(Error::new_spanned(name, format!("`{name}` has no variants, so it has no values to share")));
    }
    match &repr.integer {
        Some(integer) if INTEGERS.iter().any(|fixed| integer == fixed) => {}
        Some(integer) => wrong(Error::new_spanned(
            integer,
            format!(
                "`{name}` needs an integer of fixed size, as in `#[repr(u8)]`: one of {}",
                INTEGERS.join(", ")
            ),
        )),
        None => wrong(Error::new_spanned(
            name,
            format!(
                "`{name}` needs `#[repr(u8)]` or another integer of fixed size: without it the compiler chooses"
            ),
        )),
    }
    if let Some(errors) = errors {
        return Err(errors);
    }

    let private = &options.private;
    let integer = &repr.integer;
    let integer_name = integer.as_ref().map(Ident::to_string).unwrap_or_default();
    let description = name.unraw().to_string();
    let variants: Vec<_> = data.variants.iter().map(|variant| &variant.ident).collect();
    let names = variants.iter().map(|variant| variant.unraw().to_string());
    let values: Vec<_> = (0..variants.len()).map(|position| format_ident!("__V{position}")).collect();
    let message = format!("`{name}` is larger than its integer, and has padding: leave out `align(..)`");
    Ok(quote! {
        #[automatically_derived]
        impl #private::Plain for #name {
            const LAYOUT: &'static #private::Layout = {
                const __VARIANTS: &[#private::Variant] = &[
                    #(#private::Variant::new(#names, #name::#variants as ::core::primitive::#integer as ::core::primitive::i128)),*
                ];
                &#private::Layout::enumeration::<#name>(#description, #integer_name, __VARIANTS)
            };
        }
        const _: () = {
            #[automatically_derived]
            unsafe impl #private::bytemuck::NoUninit for #name {}
            #[automatically_derived]
            unsafe impl #private::bytemuck::CheckedBitPattern for #name {
                type Bits = ::core::primitive::#integer;
                #[inline]
                fn is_valid_bit_pattern(__bits: &::core::primitive::#integer) -> ::core::primitive::bool {
                    #(const #values: ::core::primitive::#integer = #name::#variants as ::core::primitive::#integer;)*
                    ::core::matches!(*__bits, #(#values)|*)
                }
            }
            ::core::assert!(
                ::core::mem::size_of::<#name>() == ::core::mem::size_of::<::core::primitive::#integer>(),
                #message
            );
        };
    })
}

#[cfg(test)]
mod tests;
