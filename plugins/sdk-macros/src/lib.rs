//! The attribute `#[tidegate_sdk::plugin]`. What it is for stands in the SDK.

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Error, FnArg, ImplItem, ImplItemFn, ItemImpl, parse_macro_input};

/// A hook: the method that an author writes, the trait that it becomes, and what it is given.
struct Hook {
    method: &'static str,
    interface: &'static str,
    of: &'static str,
    given: &'static [(&'static str, &'static str)],
    answer: &'static str,
}

const REQUEST: (&str, &str) = ("request", "&Request");

const HOOKS: [Hook; 7] = [
    Hook { method: "check", interface: "lifecycle", of: "Lifecycle", given: &[], answer: "Result<(), String>" },
    Hook { method: "depends_on", interface: "hints", of: "Hints", given: &[], answer: "Facts" },
    Hook { method: "admit", interface: "admission", of: "Admission", given: &[REQUEST], answer: "Verdict" },
    Hook {
        method: "route",
        interface: "routing",
        of: "Routing",
        given: &[REQUEST, ("candidates", "&[Candidate]")],
        answer: "Routes",
    },
    Hook {
        method: "on_failure",
        interface: "fallback",
        of: "Fallback",
        given: &[REQUEST, ("attempts", "&[Attempt]"), ("remaining", "&[Candidate]")],
        answer: "Step",
    },
    Hook { method: "inspect", interface: "inspection", of: "Inspection", given: &[REQUEST], answer: "Finding" },
    Hook {
        method: "judge",
        interface: "freshness",
        of: "Freshness",
        given: &[REQUEST, ("cached", "Option<&CachedTag>")],
        answer: "Rule",
    },
];

/// Makes the methods of a type the hooks of the plugin: see the SDK.
#[proc_macro_attribute]
pub fn plugin(arguments: proc_macro::TokenStream, item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let written = parse_macro_input!(item as ItemImpl);
    let made = if arguments.is_empty() {
        hooks(&written)
    } else {
        Err(Error::new(TokenStream::from(arguments).span(), "`plugin` takes nothing: the methods say which hooks"))
    };
    // What was written stays, so that its own mistakes are told as well.
    let made = made.unwrap_or_else(Error::into_compile_error);
    quote!(#written #made).into()
}

fn hooks(written: &ItemImpl) -> Result<TokenStream, Error> {
    if let Some((of, _)) = &written.trait_ {
        return Err(Error::new(of.span(), "`plugin` stands on the type's own methods: `impl MyPlugin { ... }`"));
    }
    if !written.generics.params.is_empty() {
        return Err(Error::new(written.generics.span(), "a plugin is one type, without parameters"));
    }
    let plugin = &written.self_ty;
    let mut made = TokenStream::new();
    let mut names = Vec::new();
    let mut wrong: Option<Error> = None;
    for item in &written.items {
        let ImplItem::Fn(method) = item else { continue };
        match hook(method) {
            Ok(hook) => {
                names.push(format_ident!("{}", hook.interface));
                made.extend(implementation(plugin, method, hook));
            }
            Err(err) => match &mut wrong {
                Some(wrong) => wrong.combine(err),
                None => wrong = Some(err),
            },
        }
    }
    if let Some(wrong) = wrong {
        return Err(wrong);
    }
    if names.is_empty() {
        return Err(Error::new(plugin.span(), format!("a plugin has at least one of the hooks {}", all())));
    }
    Ok(quote!(#made ::tidegate_sdk::export!(#plugin: #(#names),*);))
}

/// The hook that a method is, when it is written as one.
fn hook(method: &ImplItemFn) -> Result<&'static Hook, Error> {
    let (name, signature) = (&method.sig.ident, &method.sig);
    let Some(hook) = HOOKS.iter().find(|hook| name == hook.method) else {
        let reason = format!("`{name}` is no hook: they are {}; other functions go into another `impl`", all());
        return Err(Error::new(name.span(), reason));
    };
    let given: Vec<String> = hook.given.iter().map(|(name, kind)| format!("{name}: {kind}")).collect();
    let right = format!("fn {}({}) -> {}", hook.method, given.join(", "), hook.answer);
    if let Some(receiver @ FnArg::Receiver(_)) = signature.inputs.first() {
        let reason = format!("a hook has no `self`, as nothing is kept between two calls: `{right}`");
        return Err(Error::new(receiver.span(), reason));
    }
    if let Some(word) = &signature.asyncness {
        return Err(Error::new(word.span(), format!("a hook cannot wait: `{right}`")));
    }
    if signature.inputs.len() != hook.given.len() {
        return Err(Error::new(signature.span(), format!("the hook `{name}` is written so: `{right}`")));
    }
    Ok(hook)
}

fn implementation(plugin: &syn::Type, method: &ImplItemFn, hook: &Hook) -> TokenStream {
    let (of, name) = (format_ident!("{}", hook.of), &method.sig.ident);
    let kinds = hook.given.iter().map(|(_, kind)| in_full(kind));
    let answer = in_full(hook.answer);
    let given: Vec<_> = hook.given.iter().map(|(name, _)| format_ident!("{name}")).collect();
    // A wrong type is told where the author wrote the method's.
    let arguments = method.sig.inputs.iter().zip(&given).map(|(input, name)| {
        let mut name = name.clone();
        name.set_span(Span::call_site().located_at(input.span()));
        name
    });
    let call = quote_spanned!(method.sig.output.span()=> ::tidegate_sdk::hook::Answer::answer(answer));
    quote! {
        impl ::tidegate_sdk::hook::#of for #plugin {
            fn #name(#(#given: #kinds),*) -> #answer {
                let answer = <#plugin>::#name(#(#arguments),*);
                #call
            }
        }
    }
}

/// A type of the SDK as it is named from anywhere.
fn in_full(kind: &str) -> TokenStream {
    match kind {
        "&Request" => quote!(&::tidegate_sdk::Request),
        "&[Candidate]" => quote!(&[::tidegate_sdk::Candidate]),
        "&[Attempt]" => quote!(&[::tidegate_sdk::Attempt]),
        "Option<&CachedTag>" => quote!(::core::option::Option<&::tidegate_sdk::CachedTag>),
        "Result<(), String>" => quote!(::core::result::Result<(), ::std::string::String>),
        answer => {
            let answer = format_ident!("{answer}");
            quote!(::tidegate_sdk::#answer)
        }
    }
}

/// The methods that are hooks, for a message.
fn all() -> String {
    HOOKS.map(|hook| format!("`{}`", hook.method)).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(written: &ItemImpl) -> Vec<String> {
        hooks(written).expect_err("it is wrong").into_iter().map(|error| error.to_string()).collect()
    }

    #[test]
    fn each_mistake_is_told() {
        let told = told(&syn::parse_quote! {
            impl Plugin {
                fn admitt(request: &Request) -> Verdict {}
                fn route(&self, request: &Request) -> Routes {}
                async fn inspect(request: &Request) -> Finding {}
                fn judge(request: &Request) -> Rule {}
            }
        });
        assert_eq!(
            told,
            [
                "`admitt` is no hook: they are `check`, `depends_on`, `admit`, `route`, `on_failure`, `inspect`, `judge`; \
                 other functions go into another `impl`",
                "a hook has no `self`, as nothing is kept between two calls: \
                 `fn route(request: &Request, candidates: &[Candidate]) -> Routes`",
                "a hook cannot wait: `fn inspect(request: &Request) -> Finding`",
                "the hook `judge` is written so: `fn judge(request: &Request, cached: Option<&CachedTag>) -> Rule`",
            ]
        );
    }

    #[test]
    fn a_plugin_has_a_hook_and_no_parameters() {
        assert!(told(&syn::parse_quote!(impl Plugin {}))[0].starts_with("a plugin has at least one of the hooks"));
        assert!(
            told(&syn::parse_quote!(
                impl<T> Plugin<T> {}
            ))[0]
                .contains("without parameters")
        );
        assert!(told(&syn::parse_quote!(impl Admission for Plugin {}))[0].contains("the type's own methods"));
    }
}
