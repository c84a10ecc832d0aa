//! Letter-to-sound rules for words that no dictionary knows: names, brands, coinages.
//!
//! Each rule reads `left[letters]right=PHONES`; the first that fits wins. In the contexts `_` is the
//! edge of the word, `V` a vowel letter, `C` a consonant letter, `E` one of e, i, y, `*` any number
//! of consonants, and `M` on the right a consonant and a mute e, inflected or not ("ake", "aking",
//! "able"). A vowel with the digit 0 is weak whatever the stress.

use super::phone::Phone;

/// A phone as the rules give it, before stress is placed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draft {
    pub(super) phone: Phone,
    /// The rule says that it is weak.
    pub(super) weak: bool,
    /// The letter that it was spelled with.
    pub(super) letter: u8,
}

/// The rules, by the letter they begin with.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    by_letter: Vec<Vec<Rule>>,
}

#[derive(Clone, Debug)]
struct Rule {
    left: &'static [u8],
    letters: &'static [u8],
    right: &'static [u8],
    phones: Vec<(Phone, bool)>,
}

impl Rules {
    /// Reads the table.
    pub(super) fn english() -> Self {
        let mut by_letter = vec![Vec::new(); 26];
        for text in TABLE.split_ascii_whitespace() {
            let rule = Rule::parse(text).expect("the table holds rules only: there is a test");
            by_letter[usize::from(rule.letters[0] - b'a')].push(rule);
        }
        Self { by_letter }
    }

    /// The sounds of a word of a to z; other characters are mute.
    pub(super) fn read(&self, word: &str) -> Vec<Draft> {
        let word = word.as_bytes();
        let mut drafts = Vec::with_capacity(word.len());
        let mut at = 0;
        while let Some(&letter) = word.get(at) {
            let rules = match letter {
                b'a'..=b'z' => self.by_letter[usize::from(letter - b'a')].as_slice(),
                _ => &[],
            };
            let Some(rule) = rules.iter().find(|rule| rule.fits(word, at)) else {
                at += 1;
                continue;
            };
            drafts.extend(rule.phones.iter().map(|&(phone, weak)| Draft {
                phone,
                weak,
                letter,
            }));
            at += rule.letters.len();
        }
        drafts
    }
}

impl Rule {
    fn parse(text: &'static str) -> Option<Self> {
        let (pattern, phones) = text.split_once('=')?;
        let (left, rest) = pattern.split_once('[')?;
        let (letters, right) = rest.split_once(']')?;
        let phones = phones
            .split('.')
            .filter(|phone| !phone.is_empty())
            .map(|phone| Some((Phone::parse(phone)?, phone.ends_with('0'))))
            .collect::<Option<Vec<_>>>()?;
        (!letters.is_empty() && letters.bytes().all(|b| b.is_ascii_lowercase())).then_some(Self {
            left: left.as_bytes(),
            letters: letters.as_bytes(),
            right: right.as_bytes(),
            phones,
        })
    }

    fn fits(&self, word: &[u8], at: usize) -> bool {
        word[at..].starts_with(self.letters)
            && fits_left(self.left, &word[..at])
            && fits_right(self.right, &word[at + self.letters.len()..])
    }
}

fn is_vowel(letter: u8) -> bool {
    matches!(letter, b'a' | b'e' | b'i' | b'o' | b'u' | b'y')
}

fn class_fits(class: u8, letter: u8) -> bool {
    match class {
        b'V' => is_vowel(letter),
        b'C' => letter.is_ascii_lowercase() && !is_vowel(letter),
        b'E' => matches!(letter, b'e' | b'i' | b'y'),
        literal => literal == letter,
    }
}

/// Matches the pattern's end against the text's end, leftwards.
fn fits_left(pattern: &[u8], text: &[u8]) -> bool {
    let Some((&class, pattern)) = pattern.split_last() else {
        return true;
    };
    match class {
        b'_' => text.is_empty(),
        b'*' => {
            let consonants = text.iter().rev().take_while(|&&b| !is_vowel(b)).count();
            (0..=consonants).any(|n| fits_left(pattern, &text[..text.len() - n]))
        }
        class => text
            .split_last()
            .is_some_and(|(&letter, text)| class_fits(class, letter) && fits_left(pattern, text)),
    }
}

/// Matches the pattern's start against the text's start.
fn fits_right(pattern: &[u8], text: &[u8]) -> bool {
    let Some((&class, pattern)) = pattern.split_first() else {
        return true;
    };
    match class {
        b'_' => text.is_empty(),
        b'M' => is_mute_tail(text),
        class => text
            .split_first()
            .is_some_and(|(&letter, text)| class_fits(class, letter) && fits_right(pattern, text)),
    }
}

/// "ke", "kes", "king", "ble": one consonant and a mute e, or its inflections.
fn is_mute_tail(text: &[u8]) -> bool {
    let Some((&consonant, tail)) = text.split_first() else {
        return false;
    };
    if is_vowel(consonant) || matches!(consonant, b'x' | b'w' | b'r') {
        return false;
    }
    let tail = tail
        .strip_prefix(b"l")
        .filter(|t| t.first() == Some(&b'e'))
        .unwrap_or(tail);
    let tail = if consonant == b't' {
        tail.strip_prefix(b"h").unwrap_or(tail)
    } else {
        tail
    };
    matches!(
        tail,
        b"e" | b"es"
            | b"ed"
            | b"er"
            | b"ers"
            | b"ing"
            | b"ings"
            | b"ely"
            | b"eless"
            | b"eful"
            | b"ement"
            | b"ements"
    )
}

const TABLE: &str = "
_[a]_=AH0 [aught]=AO.T [au]=AO [aw]=AO [air]=EH.R [ai]=EY [ayer]_=EY.ER0 [ay]=EY
V*[age]_=IH0.JH V*[ages]_=IH0.JH.IH0.Z V*[ace]_=AH0.S V*[able]_=AH0.B.AH0.L V*[ably]_=AH0.B.L.IY0
V*[ance]_=AH0.N.S V*[ant]_=AH0.N.T V*[ary]_=EH2.R.IY0 V*[al]_=AH0.L V*[als]_=AH0.L.Z
V*[ally]_=AH0.L.IY0 [alk]=AO.K [all]=AO.L [ald]=AO.L.D [alt]=AO.L.T [alm]=AA.M
[are]_=EH.R [ares]_=EH.R.Z [ar]iV=EH.R [arr]=AE.R w[ar]=AO.R V*[ard]_=ER0.D V*[ards]_=ER0.D.Z
V*[ar]_=ER0 V*[ars]_=ER0.Z [ar]C=AA.R [ar]_=AA.R [ar]V=EH.R [ar]=AA.R
[ange]_=EY.N.JH [anger]_=EY.N.JH.ER0 [aste]=EY.S.T w[a]g=AE w[a]x=AE w[a]ck=AE w[a]V=EY w[a]M=EY w[a]C=AA
V*[an]_=AH0.N V*[ans]_=AH0.N.Z [a]M=EY [a]tion=EY [a]tiV=EY [a]ciV=EY [a]siV=EY [a]geous=EY
_*[a]Co=EY _*[a]Cu=EY _*[a]_=AA [ah]_=AA V*[a]_=AH0 V*[as]_=AH0.Z [aa]=AA [ae]=IY [a]=AE

_*[e]_=IY [eer]=IH.R [ee]=IY [eau]=OW [earch]=ER.CH [ear]C=ER [ear]=IH.R [ea]d=EH [ea]lth=EH [ea]ther=EH
[ea]sure=EH [ea]=IY [eigh]=EY c[ei]=IY [ei]=EY V*[ey]_=IY0 V*[eys]_=IY0.Z [ey]=EY
f[ew]=Y.UW [ew]=UW [eur]=Y.UH.R [eu]=Y.UW [eous]_=IY0.AH0.S [ere]_=IH.R [eri]V=IH.R.IY0 [err]=EH.R
V*[er]_=ER0 V*[ers]_=ER0.Z [er]V=EH.R [er]=ER _[ex]V=IH.G.Z _[ex]=EH.K.S
t[ed]_=IH0.D d[ed]_=IH0.D V*p[ed]_=T V*k[ed]_=T V*f[ed]_=T V*s[ed]_=T V*x[ed]_=T V*ch[ed]_=T V*sh[ed]_=T V*[ed]_=D
V*s[es]_=IH0.Z V*x[es]_=IH0.Z V*z[es]_=IH0.Z V*c[es]_=IH0.Z V*g[es]_=IH0.Z V*sh[es]_=IH0.Z V*ch[es]_=IH0.Z
Vp[es]_=S Vt[es]_=S Vk[es]_=S Vf[es]_=S V*[es]_=Z
V*[en]_=AH0.N V*[ens]_=AH0.N.Z V*[el]_=AH0.L V*[els]_=AH0.L.Z V*[ent]_=AH0.N.T V*[ents]_=AH0.N.T.S
V*[ence]_=AH0.N.S V*[et]_=AH0.T V*[ets]_=AH0.T.S V*[est]_=AH0.S.T V*[ess]_=AH0.S
VC[e]ly_= VC[e]ment= VC[e]ness= VC[e]ful= VC[e]less= Vth[e]= V*[e]_= V[e]_=
[e]Ce_=IY _*[e]Co=IY _*[e]Ca=IY _*[e]Cu=IY [eo]=IY.OW [e]=EH

[igh]=AY [ign]_=AY.N [ind]_=AY.N.D [inds]_=AY.N.D.Z [ild]_=AY.L.D _*[ie]_=AY _*[ies]_=AY.Z _*[ied]_=AY.D
[ies]_=IY0.Z [ied]_=IY0.D [ie]_=IY0 [ier]_=IY0.ER0 [iest]_=IY0.AH0.S.T [iew]=Y.UW [ie]=IY
V*[ice]_=AH0.S V*[ine]_=IY.N V*[ive]_=IH0.V V*[ives]_=IH0.V.Z [ique]_=IY.K V*[ism]_=IH2.Z.AH0.M
[ire]_=AY.ER0 [ires]_=AY.ER0.Z [ired]_=AY.ER0.D [ir]V=IH.R [ir]=ER [ia]_=IY0.AH0 [ian]_=IY0.AH0.N [ians]_=IY0.AH0.N.Z
[ious]_=IY0.AH0.S [ium]_=IY0.AH0.M V*[ify]_=AH0.F.AY V*[ity]_=AH0.T.IY0 V*[ily]_=AH0.L.IY0 V*[ible]_=AH0.B.AH0.L
V*[ing]_=IH0.NG V*[ings]_=IH0.NG.Z V*[ic]_=IH0.K V*[ics]_=IH0.K.S V*[ish]_=IH0.SH
[i]M=AY _*[i]_=AY [i]_=IY0 _*[i]V=AY [i]V=IY0 _*[i]Co=AY _*[i]Cu=AY [i]=IH

[ought]=AO.T [ough]=OW [ould]=UH.D [oul]=OW.L V*[ous]_=AH0.S V*[ously]_=AH0.S.L.IY0 [our]=AO.R [oup]_=UW.P
[ouse]_=AW.S [ou]ng=AH [ou]=AW _n[ow]_=AW _c[ow]=AW _h[ow]_=AW _w[ow]_=AW _v[ow]=AW all[ow]=AW
kn[own]_=OW.N gr[own]_=OW.N sh[own]_=OW.N [own]=AW.N [ower]=AW.ER0 V*[ow]_=OW [ow]_=OW [ow]s_=OW [ow]=AW
[oy]=OY [oi]=OY [oor]=AO.R [oo]k=UH g[oo]d=UH f[oo]t=UH w[oo]d=UH st[oo]d=UH [oo]=UW [oar]=AO.R [oa]=OW [oe]_=OW [oes]_=OW.Z
[ore]_=AO.R [ores]_=AO.R.Z w[or]=ER V*[or]_=ER0 V*[ors]_=ER0.Z [orr]=AA.R [or]=AO.R
[o]ld=OW [o]lk=OW [o]lt=OW [o]st_=OW V*[ome]_=AH0.M l[o]ve=AH ab[o]ve=AH [o]ther=AH [o]M=OW [o]tion=OW
_*[o]_=OW [o]_=OW [os]_=OW.Z V*[on]_=AH0.N V*[ons]_=AH0.N.Z [o]ng=AO [o]ss=AO [o]ff=AO [o]th_=AO
_*[o]Ca=OW _*[o]Co=OW _*[o]Cu=OW [o]V=OW V*[ol]_=AH0.L [o]=AA

b[ui]l=IH [uy]=AY [ui]=UW [ue]_=UW [ues]_=UW.Z [ued]_=UW.D f[ul]_=AH0.L f[ully]_=AH0.L.IY0 p[u]ll=UH b[u]ll=UH f[u]ll=UH p[u]sh=UH
[urr]=ER [ure]_=Y.UH.R [ur]V=Y.UH.R [ur]=ER [ual]_=UW0.AH0.L V*[um]_=AH0.M V*[us]_=AH0.S _[un]iV=Y.UW.N _[un]iC=Y.UW.N _[un]=AH.N
r[u]M=UW l[u]M=UW j[u]M=UW s[u]M=UW t[u]M=UW d[u]M=UW n[u]M=UW ch[u]M=UW [u]M=Y.UW
_[u]CV=Y.UW r[u]CV=UW l[u]CV=UW j[u]CV=UW s[u]CV=UW t[u]CV=UW d[u]CV=UW n[u]CV=UW [u]CV=Y.UW
[u]_=UW [u]V=UW [u]=AH

_[y]V=Y V[y]V=Y _*[y]_=AY _*[ying]_=AY.IH0.NG [y]_=IY0 [ying]_=IY0.IH0.NG [y]M=AY _*[y]Co=AY _*[y]CE=AY [yr]C=ER [y]=IH

m[b]_= m[bs]_=Z m[b]ing= [bb]=B [bt]_=T [b]=B
[cc]i=K.S [cc]e=K.S [cc]=K [ck]=K [cq]=K [chn]=K.N [chr]=K.R s[ch]=K [ch]l=K [ch]=CH [cial]=SH.AH0.L [cian]=SH.AH0.N [cious]=SH.AH0.S
[cient]=SH.AH0.N.T [ciency]=SH.AH0.N.S.IY0 [ciate]=SH.IY0.EY.T s[c]E= [c]E=S [cz]=CH [c]=K
[dge]_=JH [dg]E=JH [dd]=D [d]=D
[ff]=F [f]=F
_[gn]=N [gn]_=N [gg]=G _[gh]=G [gh]= [gue]_=G [gu]E=G [gu]a=G.W [ge]_=JH _[g]et=G _[g]iv=G _[g]irl=G _[g]if=G _[g]il=G _[g]ear=G [geous]=JH.AH0.S
[gious]=JH.AH0.S [gion]=JH.AH0.N [g]E=JH [g]=G
V[h]C= V[h]_= [h]V=HH [h]=
[j]=JH
_[kn]=N [kk]=K [kh]=K [k]=K
C[le]_=AH0.L C[les]_=AH0.L.Z C[led]_=AH0.L.D [ll]=L [l]=L
[mn]_=M [mm]=M [m]=M
[nge]_=N.JH [nger]_=NG.G.ER0 [ngth]=NG.TH [ngl]=NG.G.L [ngu]V=NG.G.W [ng]ing=NG [ng]E=N.JH [ng]_=NG [ngs]_=NG.Z [ng]C=NG [ng]V=NG.G
[n]k=NG [n]x=NG [n]q=NG [nn]=N [n]=N
[pph]=F [ph]=F _[ps]=S _[pn]=N [pp]=P [pb]=B [p]=P
[que]_=K [ques]_=K.S [qu]=K.W [q]=K
[rr]=R [rh]=R [r]=R
[ssion]=SH.AH0.N [ssure]=SH.ER0 V[sion]=ZH.AH0.N r[sion]=ZH.AH0.N [sion]=SH.AH0.N V[sure]_=ZH.ER0 [sch]_=SH [sh]=SH [ss]=S [sc]E=S
u[se]_=Z o[se]_=Z e[se]_=Z i[se]_=Z V[sm]_=Z.AH0.M u[s]_=S i[s]_=S a[s]_=S o[s]_=S e[s]_=Z y[s]_=Z
p[s]_=S t[s]_=S k[s]_=S f[s]_=S c[s]_=S th[s]_=S C[s]_=Z oi[s]V=Z u[s]E=Z a[s]E=Z e[s]E=Z i[s]E=Z ea[s]V=Z [s]=S
s[tion]=CH.AH0.N [tion]=SH.AH0.N [tious]=SH.AH0.S [tial]=SH.AH0.L [tient]=SH.AH0.N.T [tience]=SH.AH0.N.S [tiate]=SH.IY0.EY.T [ture]=CH.ER0 [tual]=CH.UW0.AH0.L
[tch]=CH [tth]=TH s[t]le= s[t]en_= [the]_=DH [th]er=DH [th]ing_=DH [th]=TH [tt]=T [tz]=T.S [t]=T
[vv]=V [v]=V
_[wh]o=HH [wh]=W _[wr]=R [w]V=W [w]=
_[x]=Z e[x]io=K.SH [x]=K.S
[zz]=Z [z]=Z
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_of_the_table_can_be_read() {
        for text in TABLE.split_ascii_whitespace() {
            assert!(Rule::parse(text).is_some(), "{text}");
        }
    }
}
