/* JSON in and out, and base64. A text is checked once as a whole; values are then found in place.
 * All texts end with a NUL, which is valid nowhere in JSON and so stops every scan. */
#include "agent.h"

static PCSTR JsonError; /* set where a scan returns NULL; only the agent's thread parses */

JSON_PROGRESS JsonFrame(JSON_FRAME *Frame, UCHAR Byte) {
    if (Frame->InString) {
        if (!Frame->Escaped && Byte == '"') Frame->InString = FALSE;
        Frame->Escaped = !Frame->Escaped && Byte == '\\';
        return Byte < ' ' ? JSON_BROKEN : JSON_MORE;
    }
    Frame->InString = Byte == '"';
    if (Byte == '{' || Byte == '[')
        Frame->Depth++;
    else if ((Byte == '}' || Byte == ']') && Frame->Depth > 0 && --Frame->Depth == 0)
        return JSON_COMPLETE;
    if (Byte == '\n' && Frame->Depth == 0 && Frame->Started) return JSON_COMPLETE;
    Frame->Started |= Byte > ' ';
    return JSON_MORE;
}

static PCSTR JsonFail(PCSTR Error) {
    JsonError = Error;
    return NULL;
}

static PCSTR JsonSpace(PCSTR At) {
    while (*At == ' ' || *At == '\t' || *At == '\n' || *At == '\r') At++;
    return At;
}

/* The value of `Count` hex digits, -1 where they are not. */
static int JsonHex(PCSTR At, ULONG Count) {
    int Value = 0;
    for (; Count > 0; Count--, At++) {
        CHAR Letter = *At | 0x20;
        if (*At >= '0' && *At <= '9')
            Value = Value << 4 | (*At - '0');
        else if (Letter >= 'a' && Letter <= 'f')
            Value = Value << 4 | (Letter - 'a' + 10);
        else
            return -1;
    }
    return Value;
}

static PCSTR JsonSkipString(PCSTR At) {
    while (*++At != '"') {
        if ((UCHAR)*At < ' ') return JsonFail("unterminated string, or a control character in it");
        if (*At != '\\') continue;
        if (*++At == 'u' ? JsonHex(At + 1, 4) <= 0 : *At == 0 || !strchr("\"\\/bfnrt", *At))
            return JsonFail("invalid escape in string"); /* so is NUL: texts here end with one */
    }
    return At + 1;
}

static PCSTR JsonDigits(PCSTR At) {
    if (At == NULL || *At < '0' || *At > '9') return JsonFail("invalid number");
    while (*At >= '0' && *At <= '9') At++;
    return At;
}

static PCSTR JsonSkipNumber(PCSTR At) {
    At += *At == '-';
    At = *At == '0' ? At + 1 : JsonDigits(At);
    if (At != NULL && *At == '.') At = JsonDigits(At + 1);
    if (At != NULL && (*At | 0x20) == 'e') At = JsonDigits(At + 1 + (At[1] == '+' || At[1] == '-'));
    return At;
}

static PCSTR JsonSkip(PCSTR At, ULONG Depth) {
    static const PCSTR Words[] = {"true", "false", "null"};
    if (*At == '"') return JsonSkipString(At);
    if (*At == '-' || (*At >= '0' && *At <= '9')) return JsonSkipNumber(At);
    for (ULONG i = 0; i < ARRAY_SIZE(Words); i++)
        if (strncmp(At, Words[i], strlen(Words[i])) == 0) return At + strlen(Words[i]);
    if (*At != '{' && *At != '[') return JsonFail("expecting value");
    BOOLEAN Object = *At == '{', First = TRUE;
    if (Depth == 0) return JsonFail("too deeply nested");
    for (At = JsonSpace(At + 1); *At != (Object ? '}' : ']'); First = FALSE, At = JsonSpace(At)) {
        if (!First && *At != ',') return JsonFail("expecting a comma or the closing bracket");
        At = First ? At : JsonSpace(At + 1);
        if (Object) {
            if (*At != '"') return JsonFail("key is not a string in object");
            if ((At = JsonSkipString(At)) == NULL) return NULL;
            if (*(At = JsonSpace(At)) != ':') return JsonFail("missing : in object pair");
            At = JsonSpace(At + 1);
        }
        if ((At = JsonSkip(At, Depth - 1)) == NULL) return NULL;
    }
    return At + 1;
}

PCSTR JsonCheck(PCSTR Text, JSON *Value) {
    Value->Text = JsonSpace(Text);
    Value->End = JsonSkip(Value->Text, JSON_DEPTH);
    if (Value->End == NULL) return JsonError;
    return *JsonSpace(Value->End) == 0 ? NULL : "something follows the value";
}

BOOLEAN JsonNext(JSON Container, JSON *Name, JSON *Value) {
    PCSTR At = JsonSpace(Value->Text == NULL ? Container.Text + 1 : Value->End);
    if (*Container.Text != (Name != NULL ? '{' : '[') || *At == '}' || *At == ']') return FALSE;
    At = *At == ',' ? JsonSpace(At + 1) : At;
    if (Name != NULL) {
        Name->Text = At;
        Name->End = JsonSkipString(At);
        At = JsonSpace(JsonSpace(Name->End) + 1); /* past the colon */
    }
    Value->Text = At;
    Value->End = JsonSkip(At, JSON_DEPTH);
    return TRUE;
}

BOOLEAN JsonMember(JSON Object, PCSTR Name, JSON *Value) {
    JSON Key;
    SIZE_T Length = strlen(Name);
    Value->Text = NULL;
    while (JsonNext(Object, &Key, Value))
        if (strncmp(Key.Text + 1, Name, Length) == 0 && Key.Text[Length + 1] == '"') return TRUE;
    return FALSE;
}

static PCHAR JsonPutUtf8(PCHAR To, ULONG Code) {
    static const UCHAR Lead[] = {0, 0xC0, 0xE0, 0xF0};
    ULONG Tail = (Code >= 0x80) + (Code >= 0x800) + (Code >= 0x10000);
    *To++ = (CHAR)(Lead[Tail] | Code >> (6 * Tail));
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
            int Code = JsonHex(At + 1, 4), Low = -1;
            At += 4;
            if (Code >= 0xD800 && Code < 0xDC00 && At[1] == '\\' && At[2] == 'u')
                Low = JsonHex(At + 3, 4);
            if (Low >= 0xDC00 && Low < 0xE000) {
                Code = 0x10000 + ((Code - 0xD800) << 10) + (Low - 0xDC00);
                At += 6;
            }
            Target = JsonPutUtf8(Target, Code >= 0xD800 && Code < 0xE000 ? 0xFFFD : Code);
        }
    }
    *Target = 0;
    return TRUE;
}

BOOLEAN JsonInteger(JSON Value, LONG64 *Integer) {
    BOOLEAN Negative = *Value.Text == '-';
    ULONG64 Limit = 0x7FFFFFFFFFFFFFFF + (ULONG64)Negative, Result = 0;
    for (PCSTR At = Value.Text + Negative; At < Value.End; At++) {
        ULONG64 Digit = (ULONG64)(*At - '0');
        if (Digit > 9 ||
            Result > (Limit - Digit) / 10) /* fractions and exponents are no integers */
            return FALSE;
        Result = Result * 10 + Digit;
    }
    *Integer = (LONG64)(Negative ? 0 - Result : Result);
    return TRUE;
}

void JsonPutString(POUTPUT Output, PCSTR Text) {
    OutputAppend(Output, "\"", 1);
    for (; *Text; Text++) {
        if (*Text == '"' || *Text == '\\')
            OutputPrint(Output, "\\%c", *Text);
        else if ((UCHAR)*Text < ' ')
            OutputPrint(Output, "\\u%04x", *Text);
        else
            OutputAppend(Output, Text, 1);
    }
    OutputAppend(Output, "\"", 1);
}

static const CHAR Base64Digits[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

void JsonPutBase64(POUTPUT Output, const UCHAR *Data, ULONG Length) {
    if (!OutputReserve(Output, (Length + 2) / 3 * 4 + 2)) return;
    OutputAppend(Output, "\"", 1);
    for (ULONG i = 0; i < Length; i += 3) {
        ULONG Bits = 0;
        CHAR Group[4];
        for (ULONG j = 0; j < 3; j++) Bits = Bits << 8 | (i + j < Length ? Data[i + j] : 0);
        for (ULONG j = 0; j < 4; j++)
            Group[j] = i + j <= Length ? Base64Digits[Bits >> (18 - 6 * j) & 63] : '=';
        OutputAppend(Output, Group, 4);
    }
    OutputAppend(Output, "\"", 1);
}

/* In place; FALSE where the text is not base64. */
BOOLEAN Base64Decode(PCHAR Text, ULONG *Decoded) {
    ULONG Bits = 0, Length = (ULONG)strlen(Text), Padding = 0;
    *Decoded = 0;
    for (ULONG i = 0; i < Length; i++) {
        PCSTR Digit = strchr(Base64Digits, Text[i]);
        Padding += Text[i] == '=' && i + 2 >= Length;
        if (Digit == NULL ? Padding == 0 || Text[i] != '=' : Padding > 0) return FALSE;
        Bits = Bits << 6 | (Digit != NULL ? (ULONG)(Digit - Base64Digits) : 0);
        for (ULONG j = 0; i % 4 == 3 && j < 3 - Padding; j++)
            Text[(*Decoded)++] = (CHAR)(Bits >> (16 - 8 * j));
    }
    return Length % 4 == 0;
}
