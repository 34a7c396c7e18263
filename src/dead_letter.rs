//! Stand-in: the reasons that ingest and metrics use.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    UnsupportedMediaType,
    UnsupportedEncoding,
    InvalidJson,
    UnexpectedMember,
    RefusedInvalid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Body,
    Element,
    Broker,
}

impl Scope {
    pub fn name(self) -> &'static str {
        match self {
            Scope::Body => "body",
            Scope::Element => "element",
            Scope::Broker => "broker",
        }
    }
}

impl Reason {
    pub const ALL: [Reason; 5] = [
        Reason::UnsupportedMediaType,
        Reason::UnsupportedEncoding,
        Reason::InvalidJson,
        Reason::UnexpectedMember,
        Reason::RefusedInvalid,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Reason::UnsupportedMediaType => "unsupported_media_type",
            Reason::UnsupportedEncoding => "unsupported_encoding",
            Reason::InvalidJson => "invalid_json",
            Reason::UnexpectedMember => "unexpected_member",
            Reason::RefusedInvalid => "refused_invalid",
        }
    }

    pub fn scope(self) -> Scope {
        match self {
            Reason::RefusedInvalid => Scope::Broker,
            Reason::UnexpectedMember => Scope::Element,
            _ => Scope::Body,
        }
    }
}
