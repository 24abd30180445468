//! The configuration of a batch, which says what to do with which tensor: a TOML file of patterns (feature `cli`).
//!
//! ```toml
//! only = ["model.layers.*"]            # if given, nothing else is factored
//! keep = ["*norm*", "*embed*"]         # these are not
//!
//! [default]
//! ratio = 3.2
//!
//! [[pattern]]                          # the first that matches a name sets what it names
//! match = "*.mlp.*"
//! rank = 256
//! power_iterations = 3
//! ```
//!
//! Patterns are globs over the whole name: `*` is any text, `?` one character, `[ab]`, `{a,b}`. What a pattern leaves
//! open comes from the command line, then from `[default]`, then from the library.

use globset::{Glob, GlobMatcher};
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::rank::Rank;
use crate::report::Method;
use crate::sketch::Sketch;
use crate::svd::TruncatedSvd;

/// The length in bytes of the longest file that is read.
pub const MAX_BYTES: usize = 1 << 20;

/// The result of a check. The error is a sentence that goes after the path.
type Checked<T> = std::result::Result<T, String>;

/// The options of one factorization, each of them given or not.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The rank of [`Rank::Fixed`]. At most one of this and the next three options is given.
    pub rank: Option<usize>,
    /// The ratio of [`Rank::Ratio`].
    pub ratio: Option<f64>,
    /// The share of [`Rank::Energy`].
    pub energy: Option<f64>,
    /// The error of [`Rank::Tolerance`].
    pub tolerance: Option<f64>,
    /// The largest rank, where the spectrum decides it.
    pub max_rank: Option<usize>,
    /// The name of a [`Method`].
    pub method: Option<String>,
    /// The name of a [`Sketch`].
    pub sketch: Option<String>,
    /// The number of extra columns.
    pub oversample: Option<u32>,
    /// The number of power iterations.
    pub power_iterations: Option<u32>,
    /// The seed.
    pub seed: Option<u64>,
}

impl Options {
    /// Returns the options that are given here, and for the rest those of `other`.
    #[must_use]
    pub fn or(self, other: &Options) -> Options {
        let rule = if self.rule().is_some() { &self } else { other };
        Options {
            rank: rule.rank,
            ratio: rule.ratio,
            energy: rule.energy,
            tolerance: rule.tolerance,
            max_rank: self.max_rank.or(other.max_rank),
            method: self.method.or_else(|| other.method.clone()),
            sketch: self.sketch.or_else(|| other.sketch.clone()),
            oversample: self.oversample.or(other.oversample),
            power_iterations: self.power_iterations.or(other.power_iterations),
            seed: self.seed.or(other.seed),
        }
    }

    /// Returns how much to keep, if an option says that.
    pub fn rule(&self) -> Option<Rank> {
        (self.rank.map(Rank::Fixed))
            .or(self.ratio.map(Rank::Ratio))
            .or(self.energy.map(Rank::Energy))
            .or(self.tolerance.map(Rank::Tolerance))
    }

    /// Makes the factorization with this rule, and with the other options of `self`.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) for a name that no method or sketch has.
    pub fn svd(&self, rule: Rank) -> Result<TruncatedSvd> {
        let mut svd = TruncatedSvd::new(rule);
        if let Some(method) = &self.method {
            svd = svd.method(method.parse::<Method>()?);
        }
        if let Some(sketch) = &self.sketch {
            svd = svd.sketch(sketch.parse::<Sketch>()?);
        }
        if let Some(k) = self.max_rank {
            svd = svd.max_rank(k);
        }
        if let Some(p) = self.oversample {
            svd = svd.oversample(p as usize);
        }
        if let Some(q) = self.power_iterations {
            svd = svd.power_iterations(q as usize);
        }
        Ok(self.seed.map_or(svd.clone(), |seed| svd.seed(seed)))
    }

    /// Refuses options that make no sense for any tensor.
    fn check(&self) -> Checked<()> {
        let rules = [self.rank.is_some(), self.ratio.is_some(), self.energy.is_some(), self.tolerance.is_some()];
        if rules.iter().filter(|&&given| given).count() > 1 {
            return Err("gives more than one of rank, ratio, energy and tolerance; give one".into());
        }
        if let Some(q) = self.power_iterations.filter(|&q| q > 100) {
            return Err(format!("power_iterations = {q} is not allowed; give at most 100"));
        }
        let rule = self.rule().unwrap_or(Rank::Fixed(1));
        // This shape has every rank, so that what is refused here is refused by all shapes.
        rule.from_shape(usize::MAX >> 32, usize::MAX >> 32).map_err(|e| e.to_string())?;
        self.svd(rule).map(drop).map_err(|e| e.to_string())
    }
}

/// A glob over the names of tensors.
#[derive(Debug, Clone)]
pub struct Pattern(GlobMatcher);

impl Pattern {
    /// Compiles a glob.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the glob.
    pub fn new(glob: &str) -> Checked<Self> {
        match Glob::new(glob) {
            Ok(glob) => Ok(Pattern(glob.compile_matcher())),
            Err(e) => Err(format!("the pattern {glob:?} does not parse: {}", e.kind())),
        }
    }

    /// Tells whether the glob matches the whole name.
    pub fn matches(&self, name: &str) -> bool {
        self.0.is_match(name)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    only: Vec<String>,
    #[serde(default)]
    keep: Vec<String>,
    #[serde(default)]
    default: Options,
    #[serde(default)]
    pattern: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    #[serde(rename = "match")]
    glob: String,
    /// The [`Options`] of the rule, before unknown ones are refused: flattening does not refuse them.
    #[serde(flatten)]
    options: toml::Table,
}

/// The configuration of a batch: which tensors are factored, and with which options.
#[derive(Debug, Clone, Default)]
pub struct Config {
    only: Vec<Pattern>,
    keep: Vec<Pattern>,
    default: Options,
    rules: Vec<(Pattern, Options)>,
}

impl Config {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// One line that says where and what is wrong: text that is no TOML, an unknown key, a value out of its range, a
    /// pattern that does not parse.
    pub fn parse(text: &str) -> Checked<Self> {
        // The text of a value may show in the error, line breaks included.
        Config::read(text).map_err(|why| why.replace(char::is_control, " "))
    }

    fn read(text: &str) -> Checked<Self> {
        if text.len() > MAX_BYTES {
            return Err(format!("has {} bytes, more than the {MAX_BYTES} that options take", text.len()));
        }
        let file: File = toml::from_str(text).map_err(|e| {
            let line = e.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count()) + 1;
            format!("line {line}: {}", e.message())
        })?;
        let patterns = |globs: &[String]| globs.iter().map(|glob| Pattern::new(glob)).collect::<Checked<Vec<_>>>();
        file.default.check().map_err(|why| format!("[default] {why}"))?;
        let rules = (file.pattern.into_iter())
            .map(|rule| {
                let about = |why: &str| format!("[[pattern]] {:?} {why}", rule.glob);
                let options: Options =
                    toml::Value::Table(rule.options).try_into().map_err(|e: toml::de::Error| about(e.message()))?;
                options.check().map_err(|why| about(&why))?;
                Ok((Pattern::new(&rule.glob)?, options))
            })
            .collect::<Checked<Vec<_>>>()?;
        Ok(Config { only: patterns(&file.only)?, keep: patterns(&file.keep)?, default: file.default, rules })
    }

    /// Adds patterns from the command line.
    ///
    /// # Errors
    /// A sentence about the first pattern that does not parse.
    pub fn with_patterns(mut self, only: &[String], keep: &[String]) -> Checked<Self> {
        for glob in only {
            self.only.push(Pattern::new(glob)?);
        }
        for glob in keep {
            self.keep.push(Pattern::new(glob)?);
        }
        Ok(self)
    }

    /// Tells whether a tensor of this name is to be factored.
    pub fn factors(&self, name: &str) -> bool {
        (self.only.is_empty() || self.only.iter().any(|p| p.matches(name)))
            && !self.keep.iter().any(|p| p.matches(name))
    }

    /// Returns the options of a tensor of this name; `given` are those of the command line.
    pub fn options(&self, name: &str, given: &Options) -> Options {
        let rule = self.rules.iter().find(|(pattern, _)| pattern.matches(name)).map(|(_, options)| options.clone());
        rule.unwrap_or_default().or(given).or(&self.default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "keep = ['*norm*']\n[default]\nratio = 3.2\nseed = 7\n[[pattern]]\nmatch = '*.mlp.*'\nrank = 64\n\
                        [[pattern]]\nmatch = '*'\nenergy = 0.9\nmethod = 'gram'\n";

    #[test]
    fn the_first_match_wins_then_the_command_line_then_the_default() {
        let config = Config::parse(TEXT).unwrap();
        assert!(config.factors("a.mlp.up") && !config.factors("a.norm"));
        let given = Options { rank: Some(3), oversample: Some(5), ..Options::default() };
        let mlp = config.options("a.mlp.up", &given);
        assert_eq!(mlp, Options { rank: Some(64), oversample: Some(5), seed: Some(7), ..Options::default() });
        let rest = config.options("a.attn", &given);
        let want = Options {
            energy: Some(0.9),
            oversample: Some(5),
            seed: Some(7),
            method: Some("gram".into()),
            ..Options::default()
        };
        assert_eq!(rest, want);
        assert_eq!(Config::default().options("x", &given), given);
        let only = Config::parse(TEXT).unwrap().with_patterns(&["a.*".into()], &["*.q".into()]).unwrap();
        assert_eq!(["a.k", "a.q", "b.k"].map(|name| only.factors(name)), [true, false, false]);
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line_with_its_place() {
        for (text, says) in [
            ("[default]\nrnk = 3", "line 2: unknown field"),
            ("[default]\nrank = 3\nratio = 2.0", "more than one of rank, ratio, energy and tolerance"),
            ("[default]\nrank = 0", "rank 0 is outside"),
            ("[default]\nratio = -1.0", "ratio = -1 is not allowed"),
            ("[default]\nmethod = 'magic'", "method = magic is not allowed"),
            ("keep = ['[']", "pattern \"[\" does not parse"),
            ("a = [1,\n2", "line 2:"),
            ("[default]\nsketch = \"a\\nb\"", "sketch = a b is not allowed"),
            ("[[pattern]]\nrank = 3", "missing field `match`"),
            ("[[pattern]]\nmatch='a'\nrnk = 3", "rnk"),
        ] {
            let why = Config::parse(text).unwrap_err();
            assert!(why.contains(says) && !why.contains('\n'), "{text:?}: {why}");
        }
    }
}
