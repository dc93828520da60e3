/* JSON in and out, and base64. A text is checked once as a whole; values are then found in place.
 * All texts end with a NUL, which is valid nowhere in JSON and so stops every scan. */
#include "agent.h"

static PCSTR JsonError; /* set where a scan returns NULL; only the agent's thread parses */
static ULONG JsonDepth;
static const CHAR JsonDecimals[] = "0123456789";

/* -- checking: each scan returns what follows the thing it is named after ---------------------- */
#define JSON_FAIL(Error) (JsonError = (Error), (PCSTR)NULL)
/* A character's place in a set; NULL where it is not in it, as the final NUL never is. */
static PCSTR JsonFind(PCSTR Set, CHAR Character) {
    return Character ? strchr(Set, Character) : NULL;
}

/* What follows the characters of a set. */
static PCSTR JsonPast(PCSTR Set, PCSTR At) {
    while (JsonFind(Set, *At)) At++;
    return At;
}
static PCSTR JsonSpace(PCSTR At) { return JsonPast(" \t\n\r", At); }

/* The value of four hex digits, -1 where they are not. */
static int JsonHex(PCSTR At) {
    static const CHAR Digits[] = "0123456789abcdefABCDEF";
    int Value = 0;
    for (PCSTR End = At + 4; At < End; At++) {
        PCSTR Digit = JsonFind(Digits, *At);
        if (Digit == NULL) return -1;
        Value = Value << 4 | (int)(Digit - Digits < 16 ? Digit - Digits : Digit - Digits - 6);
    }
    return Value;
}

static PCSTR JsonSkipString(PCSTR At) {
    while (*++At != '"') {
        if ((UCHAR)*At < ' ') return JSON_FAIL("unterminated string, or a control character in it");
        if (*At == '\\' && (*++At == 'u' ? JsonHex(At + 1) <= 0 : !JsonFind("\"\\/bfnrt", *At)))
            return JSON_FAIL("invalid escape in string"); /* so is NUL: texts here end with one */
    }
    return At + 1;
}

static PCSTR JsonDigits(PCSTR At) {
    return JsonFind(JsonDecimals, *At) ? JsonPast(JsonDecimals, At) : JSON_FAIL("invalid number");
}

static PCSTR JsonSkipNumber(PCSTR At) {
    At += *At == '-';
    At = *At == '0' ? At + 1 : JsonDigits(At);
    if (At != NULL && *At == '.') At = JsonDigits(At + 1);
    if (At != NULL && (*At | 0x20) == 'e') At = JsonDigits(At + 1 + (At[1] == '+' || At[1] == '-'));
    return At;
}

static PCSTR JsonSkip(PCSTR At) {
    static const PCSTR Words[] = {"true", "false", "null"};
    JSON Container = {At, NULL}, Name, Value = {NULL, At + 1};
    for (ULONG i = 0; i < ARRAY_SIZE(Words); i++)
        if (strncmp(At, Words[i], strlen(Words[i])) == 0) return At + strlen(Words[i]);
    if (*At == '"') return JsonSkipString(At);
    if (*At == '-' || JsonFind(JsonDecimals, *At)) return JsonSkipNumber(At);
    if (*At != '{' && *At != '[') return JSON_FAIL("expecting value");
    if (JsonDepth == JSON_DEPTH) return JSON_FAIL("too deeply nested");
    JsonDepth++;
    while (JsonNext(Container, *At == '{' ? &Name : NULL, &Value)) continue;
    JsonDepth--;
    return JsonError == NULL ? JsonSpace(Value.End) + 1 : NULL;
}

static PCSTR JsonStep(JSON Container, JSON *Name, JSON *Value) {
    BOOLEAN First = Value->Text == NULL;
    PCSTR At = JsonSpace(First ? Container.Text + 1 : Value->End);
    CHAR Opening = *Container.Text; /* "[" and "]", "{" and "}" are two apart */
    if (Opening != (Name != NULL ? '{' : '[') || *At == Opening + 2) return NULL;
    if (!First && *At++ != ',') return JSON_FAIL("expecting a comma or the closing bracket");
    Value->Text = JsonSpace(At);
    if (Name != NULL) {
        Name->Text = Value->Text;
        if (*Name->Text != '"') return JSON_FAIL("key is not a string in object");
        if ((Name->End = JsonSkipString(Name->Text)) == NULL) return NULL;
        if (*(At = JsonSpace(Name->End)) != ':') return JSON_FAIL("missing : in object pair");
        Value->Text = JsonSpace(At + 1);
    }
    return Value->End = JsonSkip(Value->Text);
}

BOOLEAN JsonNext(JSON Container, JSON *Name, JSON *Value) {
    return JsonStep(Container, Name, Value) != NULL;
}

PCSTR JsonCheck(PCSTR Text, JSON *Value) {
    JsonError = NULL;
    Value->Text = JsonSpace(Text);
    Value->End = JsonSkip(Value->Text);
    return JsonError != NULL || *JsonSpace(Value->End) == 0 ? JsonError : "text after the value";
}

/* -- values ------------------------------------------------------------------------------------ */
BOOLEAN JsonMember(JSON Object, PCSTR Name, JSON *Value) {
    JSON Key;
    SIZE_T Length = strlen(Name);
    Value->Text = NULL;
    while (JsonNext(Object, &Key, Value))
        if (strncmp(Key.Text + 1, Name, Length) == 0 && Key.Text[Length + 1] == '"') return TRUE;
    return FALSE;
}

static PCHAR JsonPutUtf8(PCHAR To, ULONG Code) {
    ULONG Tail = (Code >= 0x80) + (Code >= 0x800);
    *To++ = (CHAR)((Tail == 0 ? 0 : Tail == 1 ? 0xC0 : 0xE0) | Code >> (6 * Tail));
    while (Tail-- > 0) *To++ = (CHAR)(0x80 | (Code >> (6 * Tail) & 0x3F));
    return To;
}

BOOLEAN JsonString(JSON Value, PCHAR Target) {
    static const CHAR Escapes[] = "bfnrt", Meanings[] = "\b\f\n\r\t";
    if (*Value.Text != '"') return FALSE;
    for (PCSTR At = Value.Text + 1; At < Value.End - 1; At++) {
        if (*At != '\\') {
            *Target++ = *At;
        } else if (*++At != 'u') {
            PCSTR Escape = strchr(Escapes, *At);
            *Target++ = Escape != NULL ? Meanings[Escape - Escapes] : *At;
        } else {
            ULONG Code = JsonHex(At + 1); /* half of a UTF-16 pair becomes U+FFFD */
            Target = JsonPutUtf8(Target, Code >> 11 == 0xD800 >> 11 ? 0xFFFD : Code);
            At += 4;
        }
    }
    *Target = 0;
    return TRUE;
}

BOOLEAN JsonInteger(JSON Value, LONG64 *Integer) {
    CHAR Text[24]; /* what is cut off is too large anyway */
    ULONG64 Size, Negative = *Value.Text == '-', Limit = 0x7FFFFFFFFFFFFFFF + Negative;
    RtlFormat(Text, sizeof(Text), "%.*s", (int)(Value.End - Value.Text), Value.Text);
    if (!RtlTextToInteger(Text + Negative, 10, &Size) || Size > Limit) return FALSE;
    *Integer = (LONG64)(Negative ? 0 - Size : Size);
    return TRUE;
}

void JsonPutString(POUTPUT Output, PCSTR Text) {
    OutputAppend(Output, "\"", 1);
    for (; *Text; Text++) {
        BOOLEAN Plain = (UCHAR)*Text >= ' ' && *Text != '"' && *Text != '\\';
        OutputPrint(Output, Plain ? "%c" : "\\u%04x", (UCHAR)*Text);
    }
    OutputAppend(Output, "\"", 1);
}

/* -- base64 ------------------------------------------------------------------------------------ */
static const CHAR Digits64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

void JsonPutBase64(POUTPUT Output, const UCHAR *Data, ULONG Length) {
    OutputAppend(Output, "\"", 1);
    for (ULONG i = 0; i < Length; i += 3) {
        ULONG Bits = 0;
        CHAR Group[4];
        for (ULONG j = 0; j < 3; j++) Bits = Bits << 8 | (i + j < Length ? Data[i + j] : 0);
        for (ULONG j = 0; j < 4; j++)
            Group[j] = i + j <= Length ? Digits64[Bits >> (18 - 6 * j) & 63] : '=';
        OutputAppend(Output, Group, 4);
    }
    OutputAppend(Output, "\"", 1);
}

BOOLEAN Base64Decode(PCHAR Text, ULONG *Decoded) {
    ULONG Bits = 0, Length = (ULONG)strlen(Text), Padding = 0;
    while (Padding < MIN(Length, 2u) && Text[Length - 1 - Padding] == '=') Padding++;
    for (ULONG i = 0; i < Length; i++) {
        PCSTR Digit = i < Length - Padding ? strchr(Digits64, Text[i]) : Digits64;
        if (Digit == NULL) return FALSE;
        Bits = Bits << 6 | (ULONG)(Digit - Digits64);
        for (ULONG j = 0; i % 4 == 3 && j < 3; j++) Text[i / 4 * 3 + j] = Bits >> (16 - 8 * j);
    }
    *Decoded = Length / 4 * 3 - Padding;
    return Length % 4 == 0;
}
