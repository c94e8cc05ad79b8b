//! What a section of the table makes: its struct, its keys, and how it is read, written and kept until a restart.

use crate::config::key::{Key, Section};
use crate::config::raw;
use crate::config::read::Fields;
use crate::config::report::Report;
use std::collections::BTreeMap;
use toml::{Table, Value};

/// A section as [`section!`] makes it.
pub(in crate::config) trait FromFields: Sized {
    /// Its row in [`super::SECTIONS`].
    const SECTION: &'static Section;

    /// What is written; where nothing is, or what is wrong, the default. Sections inside are left for later.
    fn from_fields(fields: &Fields<'_>, report: &mut Report) -> Self;

    /// The fields of the section that stands once in the file.
    fn fields(root: &raw::Table) -> Fields<'_> {
        Fields::of(Self::SECTION, Self::SECTION.name.to_owned(), root.get(Self::SECTION.name))
    }

    /// The section that stands under this name in an entry of another, and its fields.
    fn inside<'a>(outer: &Fields<'a>, name: &str, report: &mut Report) -> (Self, Fields<'a>) {
        let fields = Fields::of(Self::SECTION, format!("{}.{name}", outer.path), outer.node(name)).checked(report);
        (Self::from_fields(&fields, report), fields)
    }

    /// The defaults. A key that has none, and must be written, is not reported here.
    fn unwritten() -> Self {
        let mut report = Report::new(None);
        Self::from_fields(&Fields::of(Self::SECTION, String::new(), None), &mut report)
    }
}

/// A section, or several of one kind: a part of the configuration that can be written back and taken over.
pub(in crate::config) trait Part: Default {
    /// What the file says of a section that stands once. Several of one kind are read where they are checked.
    fn read(_root: &raw::Table, _report: &mut Report) -> Self {
        Self::default()
    }

    /// The TOML that gives it again.
    fn to_value(&self) -> Value;

    /// The keys in which `next` differs and which only a new process applies: `listener.port`.
    fn restart_needed(&self, _next: &Self) -> Vec<String> {
        Vec::new()
    }

    /// Takes over the values of such keys.
    fn keep_until_restart(&mut self, _old: &Self) {}
}

impl<T: Part> Part for BTreeMap<String, T> {
    fn to_value(&self) -> Value {
        self.iter().map(|(name, part)| (name.clone(), part.to_value())).collect::<Table>().into()
    }
}

impl<T: Part + FromFields + Clone + PartialEq> Part for Vec<T> {
    fn to_value(&self) -> Value {
        self.iter().map(Part::to_value).collect::<Vec<_>>().into()
    }

    /// A list changes as a whole.
    fn restart_needed(&self, next: &Self) -> Vec<String> {
        let needed = self != next && T::SECTION.needs_restart();
        needed.then(|| T::SECTION.name.to_owned()).into_iter().collect()
    }

    fn keep_until_restart(&mut self, old: &Self) {
        if T::SECTION.needs_restart() {
            self.clone_from(old);
        }
    }
}

/// The part of a table of TOML that one key is.
pub(super) fn entry(key: Option<&Key>, write: impl FnOnce(&Key) -> Option<Value>) -> Option<(String, Value)> {
    key.and_then(|key| Some((key.name.to_owned(), write(key)?)))
}

/// Declares sections and their keys; `mod.rs` tells how a row reads.
macro_rules! section {
    (
        $(#[doc = $section_about:literal])+
        $Section:ident = $Shape:ident $section_name:literal, per $Usual_scope:ident, by $Usual_change:ident {
            $(
                $(#[doc = $about:literal])+
                $key:ident: $type:ty $(as $Kind:ident $(($($bound:expr),+))?)? = $default:tt $($otherwise:literal)?,
                    e.g. $example:tt $(, per $Scope:ident)? $(, by $Change:ident)?;
            )*
        }
        $(with { $($(#[doc = $inside_about:literal])+ $inside:ident: $inside_type:ty,)+ })?
    ) => {
        $(#[doc = $section_about])+
        #[derive(Clone, Debug, PartialEq)]
        pub struct $Section {
            $(
                $(#[doc = $about])+
                #[doc = concat!("\n\nDefault: ", stringify!($default $($otherwise)?))]
                pub $key: $type,
            )*
            $($($(#[doc = $inside_about])+ pub $inside: $inside_type,)+)?
        }

        const _: () = {
            use $crate::config::key::{Change, Fallback, Key, Scope, Section, Shape};
            use $crate::config::keys::section::{FromFields, Part, entry};
            use $crate::config::{raw::Table, read::Fields, report::Report, values::Written};

            impl FromFields for $Section {
                const SECTION: &'static Section = &Section {
                    name: $section_name,
                    shape: Shape::$Shape,
                    about: concat!($($section_about),+).trim_ascii_start(),
                    keys: &[$(Key {
                        name: stringify!($key),
                        kind: section!(@kind $type $(as $Kind $(($($bound),+))?)?),
                        default: section!(@default $default $($otherwise)?),
                        example: stringify!($example),
                        scope: section!(@usual Scope, $Usual_scope $($Scope)?),
                        change: section!(@usual Change, $Usual_change $($Change)?),
                        about: concat!($($about),+).trim_ascii_start(),
                    }),*],
                    inside: &[$($(stringify!($inside)),+)?],
                };

                fn from_fields(fields: &Fields<'_>, report: &mut Report) -> Self {
                    Self {
                        $($key: section!(@take $default, fields, stringify!($key), report),)*
                        $($($inside: Default::default(),)+)?
                    }
                }
            }

            impl Part for $Section {
                fn to_value(&self) -> toml::Value {
                    let mut table = toml::Table::new();
                    let mut keys = Self::SECTION.keys.iter();
                    $(table.extend(entry(keys.next(), |key| self.$key.write(key)));)*
                    $($(if self.$inside != <$inside_type>::default() {
                        table.insert(stringify!($inside).to_owned(), self.$inside.to_value());
                    })+)?
                    table.into()
                }

                fn read(root: &Table, report: &mut Report) -> Self {
                    Self::from_fields(&Self::fields(root).checked(report), report)
                }

                fn restart_needed(&self, next: &Self) -> Vec<String> {
                    let differ = [$(self.$key.ne(&next.$key)),*];
                    let keys = Self::SECTION.keys.iter().zip(differ);
                    let needed = keys.filter(|(key, differs)| *differs && key.change == Change::Restart);
                    needed.map(|(key, _)| format!("{}.{}", Self::SECTION.name, key.name)).collect()
                }

                fn keep_until_restart(&mut self, old: &Self) {
                    $(if section!(@usual Change, $Usual_change $($Change)?) == Change::Restart {
                        self.$key.clone_from(&old.$key);
                    })*
                }
            }

            impl Default for $Section {
                /// What holds where nothing is written.
                fn default() -> Self {
                    Self::unwritten()
                }
            }
        };
    };

    (@kind $type:ty) => { <$type as Written>::KIND };
    (@kind $type:ty as $Kind:ident $(($($bound:expr),+))?) => { $crate::config::key::Kind::$Kind $(($($bound),+))? };

    (@default required) => { Fallback::Required };
    (@default unset $words:literal) => { Fallback::Unset($words) };
    (@default $value:tt) => { Fallback::Value(stringify!($value)) };

    (@usual $Type:ident, $Usual:ident) => { $Type::$Usual };
    (@usual $Type:ident, $Usual:ident $Own:ident) => { $Type::$Own };

    (@take required, $fields:ident, $key:expr, $report:ident) => { $fields.take_or_default($key, $report) };
    (@take unset, $fields:ident, $key:expr, $report:ident) => { $fields.take_or_default($key, $report) };
    (@take $value:tt, $fields:ident, $key:expr, $report:ident) => { $fields.take($key, $report) };
}

/// Declares an enum of which each variant is a word of the configuration.
macro_rules! words {
    ($(#[$meta:meta])* $Name:ident { $($(#[$variant_meta:meta])+ $Variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $Name { $($(#[$variant_meta])+ $Variant,)+ }

        impl $Name {
            /// All that there are.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$Variant),+];

            /// As it is written.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$Variant => $word,)+ }
            }
        }

        impl $crate::config::values::AsText for $Name {
            const KIND: $crate::config::key::Kind = $crate::config::key::Kind::Choice(&[$($word),+]);

            fn from_text(text: &str) -> Result<Self, String> {
                let found = Self::ALL.into_iter().find(|word| word.name() == text);
                found.ok_or_else(|| $crate::config::values::right(Self::KIND))
            }

            fn to_text(&self) -> String {
                self.name().to_owned()
            }
        }
    };
}

/// Declares the configuration: the sections that stand on their own.
macro_rules! config {
    ($(#[doc = $about:literal])+ $Config:ident { $($(#[doc = $part_about:literal])+ $part:ident: $type:ty,)+ }) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq)]
        pub struct $Config {
            $($(#[doc = $part_about])+ pub $part: $type,)+
            /// What is allowed and yet looks like a mistake, one sentence each; for the log and for `shardgate check`.
            pub warnings: Vec<String>,
        }

        impl $Config {
            /// All sections that stand once, as they are written, and nothing of the others.
            pub(in crate::config) fn read_once(root: &raw::Table, report: &mut Report) -> Self {
                Self { $($part: Part::read(root, report),)+ warnings: Vec::new() }
            }

            /// The keys in which `next` differs and which only a new process applies: `listener.port`.
            pub fn restart_needed(&self, next: &Self) -> Vec<String> {
                [$(self.$part.restart_needed(&next.$part)),+].concat()
            }

            /// Takes over from `old`, which is what the process runs with, the values of all keys that need a new one.
            pub fn keep_until_restart(&mut self, old: &Self) {
                $(self.$part.keep_until_restart(&old.$part);)+
            }

            /// The TOML that gives it again, but for what nobody may read.
            pub(in crate::config) fn to_table(&self) -> toml::Table {
                [$((stringify!($part).to_owned(), self.$part.to_value())),+].into_iter().collect()
            }
        }
    };
}

pub(super) use {config, section, words};
