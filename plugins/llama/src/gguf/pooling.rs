//! How a model makes the vector of a text, if that is what it makes.

/// How the vector of a text is made of those of its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean of all tokens.
    Mean,
    /// The first token.
    Cls,
    /// The last token.
    Last,
    /// None is made: the model ranks texts, or has only vectors of tokens.
    Unsupported,
}

impl Pooling {
    /// What a header says: `causal` is false for a model that reads in both
    /// directions, and so cannot write. `None` for a model that makes text.
    pub(super) fn of(causal: bool, pooling_type: Option<u64>) -> Option<Self> {
        match pooling_type {
            Some(1) => Some(Self::Mean),
            Some(2) => Some(Self::Cls),
            Some(3) => Some(Self::Last),
            Some(4..) => Some(Self::Unsupported),
            None if !causal => Some(Self::Mean),
            Some(0) if !causal => Some(Self::Unsupported),
            None | Some(0) => None,
        }
    }

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Last => "last",
            Self::Unsupported => "unsupported",
        }
    }
}
